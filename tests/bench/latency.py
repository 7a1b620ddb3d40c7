"""How long a command takes to its reply, and until a query sees it, at a steady rate.

Open loop: commands are sent by the clock, whatever became of those before, and times count from
the moment a command was due, not from when the client got round to it. So a stall shows in every
command that it delays.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from tests.amqp import Client, open_client
from tests.bench.bench import Bench, Figure, Section, UnmetError, expect, percentile
from tests.bench.cpu import CpuMeter, CpuReading, others_figure
from tests.bench.grants import Grant, make_grants
from tests.bench.progress import Tell
from tests.deployment import Deployment, open_deployment

WITHIN_S = 10.0
WARM_UP_S = 1
PATIENTS_PER_S = 20
"""Each of them gets a grant in five different seconds."""

HOW = (
    (
        "{commands:,} grants at {rate} commands/s, sent by the clock (open loop), after {warm_up}"
        " more that are not counted; times count from when a command was due, at one client on the"
        " same machine."
    ),
    (
        "Reply: until the broker has confirmed the command and its reply is there. Visible: until"
        " HasConsent, asked as soon as the reply is there with its version as min_version, is"
        " answered."
    ),
)


@dataclass(frozen=True)
class Times:
    """Of one command, in seconds since it was due."""

    sent: float
    reply: float
    visible: float


def measure(bench: Bench) -> Section:
    """Run once, in a deployment of its own."""
    sizes = bench.sizes
    with open_deployment(bench.sandbox, "latency", partitions=sizes.partitions) as deployment:
        with bench.steps.step("latency: new databases and queues"):
            deployment.prepare()
        with bench.steps.step("latency: starting the workers"):
            deployment.start_both()
        times, cpu = asyncio.run(_run(bench, deployment))
    commands, warm_up = len(times), WARM_UP_S * sizes.rate_per_s
    how = [line.format(commands=commands, rate=sizes.rate_per_s, warm_up=warm_up) for line in HOW]
    return Section(
        f"Latency at {sizes.rate_per_s} commands/s",
        how,
        [
            *_percentiles("command → reply", [one.reply for one in times]),
            *_percentiles("command → visible", [one.visible for one in times]),
            Figure("client behind its schedule p99", "ms", [_p99_ms([o.sent for o in times])]),
            others_figure([cpu]),
        ],
    )


def _percentiles(name: str, seconds: Sequence[float]) -> list[Figure]:
    wanted = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return [
        Figure(f"{name} {label}", "ms", [1000 * percentile(seconds, percent)])
        for label, percent in wanted.items()
    ]


def _p99_ms(seconds: Sequence[float]) -> float:
    return 1000 * percentile(seconds, 99)


async def _run(bench: Bench, deployment: Deployment) -> tuple[list[Times], CpuReading]:
    sizes = bench.sizes
    patients = PATIENTS_PER_S * (WARM_UP_S + sizes.latency_s)
    grants = make_grants(patients, sizes.rate_per_s // PATIENTS_PER_S)
    meter = await CpuMeter.of(bench, deployment)
    async with open_client(deployment.rabbitmq_url, deployment.partitions) as client:
        with bench.steps.step("latency: running", len(grants)) as tell:
            before = meter.read()
            times = await _send_by_the_clock(client, grants, sizes.rate_per_s, tell)
            cpu = meter.read().since(before)
    return times[WARM_UP_S * sizes.rate_per_s :], cpu


async def _send_by_the_clock(
    client: Client, grants: Sequence[Grant], rate_per_s: int, tell: Tell
) -> list[Times]:
    start = monotonic() + 0.1
    under_way = []
    for number, grant in enumerate(grants):
        due = start + number / rate_per_s
        await asyncio.sleep(max(0.0, due - monotonic()))
        under_way.append(asyncio.create_task(_one(client, grant, due)))
        tell(number)
    return await asyncio.gather(*under_way)


async def _one(client: Client, grant: Grant, due: float) -> Times:
    sent = monotonic() - due
    try:
        async with asyncio.timeout(WITHIN_S):
            reply = await client.command(
                "GrantConsent", grant.patient_id, id_=grant.doctor_id, message_id=grant.command_id
            )
            replied = monotonic() - due
            expect(reply["status"] == "accepted", f"a command was rejected: {reply}")
            held = await client.query(
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
