"""How long a command takes to its reply, and until a query sees it, at steady rates.

Open loop: commands are sent by the clock, whatever became of those before, and times count from
the moment a command was due, not from when the client got round to it. So a stall shows in every
command that it delays.
"""

import asyncio
import selectors
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from tests.bench.bench import Bench, Figure, Goal, Section, UnmetError, expect, percentile
from tests.bench.cpu import NAMES, CpuMeter, CpuReading
from tests.bench.grants import Grant, make_grants
from tests.bench.one_step import OneStep, one_step
from tests.bench.requests import Asker, open_asker
from tests.bench.rounds import end_to_end
from tests.bench.stage import open_stage
from tests.support.deployment import Deployment

RATES_PER_S = (10, 100, 500)
SHARES = (10, 2)
"""A fixed rate means another share of each machine; of what it does, a tenth and a half."""
CPU_AT_PER_S = 500
ASKED_PER_S = 50
"""How many commands in a second are followed by a query: more would be a load of their own."""
WARM_UP_S = 0.5
WITHIN_S = 15.0
PATIENTS = 1_000
FEWEST_SAMPLES = 15
LIMIT_S = 0.5
P50 = {"reply": {10: 2.0, 100: 2.0, 500: 3.5}, "visible": {10: 3.0, 100: 3.5, 500: 6.0}}
P99 = {("visible", 500): 8.0}

HOW = (
    (
        "Grants at a steady rate for {latency_s:g} s, sent by the clock (open loop), after half a"
        " second that is not counted; times count from when a command was due, at one client on"
        " the same machine. {runs} runs of each rate, in turns with the limit; a percentile is"
        " taken of each run, and the median of these is shown."
    ),
    (
        "Reply: until the reply is there. Visible: until HasConsent, asked as soon as the reply is"
        " there with its version as min_version, is answered; at most 50 commands in a second are"
        " asked about, since a query for each would be a load of its own. At 10/s a run has few"
        " commands: its p99 is its slowest."
    ),
    (
        "Limit: one row committed durably by asyncpg, and then one persistent message published"
        " with confirm to a quorum queue and consumed from it, at the same rate, while nothing else"
        " happens; the same percentile of the sum. A command takes two"
        " more steps through the broker than that"
        " (the reply; and, to be visible, its event and a second commit)."
    ),
    (
        "A tenth and a half: of the commands a second that this run found end to end, with one"
        " worker of each kind; where it measured no throughput, one such run is made first. At a"
        " half, the one process that sends by the clock and reads all replies needs a core too:"
        " how far it fell behind is shown."
    ),
    (
        "CPU per command at {cpu_at}/s: user and system time of all processes of the deployment"
        " while commands are sent at that rate, with whatever they do beside; its limit is what the"
        " servers use for one commit and one round trip, in the measurement of the limit above."
    ),
)


@dataclass(frozen=True)
class Times:
    """Of one command, in seconds since it was due."""

    sent: float
    reply: float
    visible: float | None


def measure(bench: Bench) -> Section:
    """Run all rates in turns, in one deployment."""
    sizes = bench.sizes
    rates = _rates(bench)
    runs: dict[int, list[list[Times]]] = defaultdict(list)
    limits: dict[int, list[OneStep]] = defaultdict(list)
    cpu: list[CpuReading] = []
    floor: list[CpuReading] = []
    with open_stage(bench, "latency") as deployment:
        with bench.steps.step("latency: starting the workers"):
            deployment.start_both()
            meter = asyncio.run(CpuMeter.of(bench, deployment))
        loads = _loads(sizes.runs, rates, sizes.latency_s)
        for number in range(1, sizes.runs + 1):
            for rate in rates:
                with bench.steps.step(f"latency: the limit at {rate}/s, run {number}"):
                    samples, before = _samples(rate), meter.read()
                    limits[rate].append(asyncio.run(one_step(deployment, samples, rate)))
                    if rate == CPU_AT_PER_S:
                        floor.append(meter.read().since(before))
                with (
                    bench.steps.step(f"latency: {rate}/s, run {number} of {sizes.runs}"),
                    asyncio.Runner(loop_factory=_punctual_loop) as runner,
                ):
                    before = meter.read()
                    times = runner.run(_run(deployment, next(loads), rate))
                    if rate == CPU_AT_PER_S:
                        cpu.append(meter.read().since(before))
                runs[rate].append(times[round(WARM_UP_S * rate) :])
    how = [line.format(**vars(sizes), cpu_at=CPU_AT_PER_S) for line in HOW]
    commands = round(CPU_AT_PER_S * (sizes.latency_s + WARM_UP_S))
    used = [_each(one, commands) for one in cpu]
    least = [_each(one, _samples(CPU_AT_PER_S)) for one in floor]
    figures = [*_figures(runs, limits), *_cpu(used, least), *_limits(limits)]
    return Section("Latency", how, figures)


def _samples(rate: int) -> int:
    """Count what is measured of the limit at a rate."""
    return max(FEWEST_SAMPLES, round(LIMIT_S * rate))


def _rates(bench: Bench) -> list[int]:
    """List the rates that are the same everywhere, and shares of what this machine does."""
    most = bench.found.end_to_end
    if most is None:
        most = end_to_end(bench, "latency: what the machine does", 1).commands
    return sorted({*RATES_PER_S, *(round(most / share) for share in SHARES)})


def _punctual_loop() -> asyncio.AbstractEventLoop:
    """Make a loop that wakes within microseconds: epoll's timeouts are whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def _loads(runs: int, rates: Sequence[int], seconds: float) -> Iterator[list[Grant]]:
    """Give each run grants of its own."""
    counts = [round(rate * (seconds + WARM_UP_S)) for _ in range(runs) for rate in rates]
    every = iter(make_grants(PATIENTS, -(-sum(counts) // PATIENTS)))
    for count in counts:
        yield [next(every) for _ in range(count)]


def _figures(
    runs: dict[int, list[list[Times]]], limits: dict[int, list[OneStep]]
) -> Iterator[Figure]:
    kinds: dict[str, Callable[[Times], float | None]] = {
        "reply": lambda times: times.reply,
        "visible": lambda times: times.visible,
    }
    for rate, every in runs.items():
        for kind, of in kinds.items():
            for percent in (50, 95, 99):
                values = [_percentile_ms(run, of, percent) for run in every]
                limit = [1000 * percentile(one.both(), percent) for one in limits[rate]]
                name = f"command → {kind}, {rate}/s, p{percent}"
                yield Figure(name, "ms", values, limit, _goal(kind, rate, percent))
        behind = [_percentile_ms(run, lambda times: times.sent, 99) for run in every]
        yield Figure(f"client behind its schedule, {rate}/s, p99", "ms", behind)


def _goal(kind: str, rate: int, percent: int) -> Goal | None:
    """Say what is to be reached; nothing where the rate is another one on each machine."""
    if rate not in P50[kind] or percent == 95:
        return None
    return Goal(at_most=P50[kind][rate] if percent == 50 else P99.get((kind, rate), 6.0))


def _each(reading: CpuReading, count: int) -> dict[str, float]:
    """Tell the milliseconds of CPU of each part for one of so many."""
    return {part: 1000 * seconds / count for part, seconds in reading.parts.items()}


def _cpu(used: Sequence[dict[str, float]], least: Sequence[dict[str, float]]) -> Iterator[Figure]:
    name = f"CPU per command at {CPU_AT_PER_S}/s"
    every, floor = (
        [sum(one.values()) for one in some if one.keys() == NAMES.keys()] for some in (used, least)
    )
    yield Figure(f"{name}, all processes", "ms", every, floor, Goal(no_more_than=1.45))
    for part, title in NAMES.items():
        values, limit = ([one[part] for one in some if part in one] for some in (used, least))
        yield Figure(f"{name}, {title}", "ms", values, limit if all(limit) else ())


def _percentile_ms(
    run: Sequence[Times], of: Callable[[Times], float | None], percent: float
) -> float:
    return 1000 * percentile([value for one in run if (value := of(one)) is not None], percent)


def _limits(limits: dict[int, list[OneStep]]) -> Iterator[Figure]:
    for rate, measured in limits.items():
        steps = (
            ("one durable commit", [one.commits for one in measured]),
            ("one AMQP round trip", [one.round_trips for one in measured]),
        )
        for name, every in steps:
            values = [1000 * percentile(run, 50) for run in every]
            yield Figure(f"{name}, {rate}/s, p50", "ms", values)


async def _run(deployment: Deployment, grants: Sequence[Grant], rate_per_s: int) -> list[Times]:
    async with open_asker(deployment.rabbitmq_url, deployment.partitions) as asker:
        start = monotonic() + 0.1
        every = max(1, rate_per_s // ASKED_PER_S)
        under_way = []
        for number, grant in enumerate(grants):
            due = start + number / rate_per_s
            await asyncio.sleep(max(0.0, due - monotonic()))
            one = _one(asker, grant, due, ask=number % every == 0)
            under_way.append(asyncio.create_task(one))
        return await asyncio.gather(*under_way)


async def _one(asker: Asker, grant: Grant, due: float, *, ask: bool) -> Times:
    sent = monotonic() - due
    try:
        async with asyncio.timeout(WITHIN_S):
            reply = await asker.command(grant)
            replied = monotonic() - due
            expect(reply["status"] == "accepted", f"a command was rejected: {reply}")
            if not ask:
                return Times(sent, replied, None)
            held = await asker.query(
                "HasConsent",
                patient_id=grant.patient_id,
                entity_name="doctor",
                entity_id=grant.doctor_id,
                permission="exams",
                min_version=reply["version"],
            )
    except TimeoutError:
        raise UnmetError(f"no reply or answer within {WITHIN_S:g} s to {grant}") from None
    visible = monotonic() - due
    expect(held.get("has_consent"), f"a consent that was granted is not held: {held}")
    return Times(sent, replied, visible)
