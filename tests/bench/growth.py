"""Whether appending stays as fast as the log, or a patient's history, grows."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from time import monotonic
from uuid import uuid4

from command_service.domain.decisions import Stream
from command_service.store.event_store import EventStore
from shared.messages.commands import ConsentCommand
from shared.postgres.connection import Pool
from shared.postgres.database import open_pool
from tests.bench.append import BATCH, PATIENTS
from tests.bench.bench import Bench, Figure, Goal, Section, expect
from tests.bench.grants import Grant
from tests.bench.old_log import make_log, make_streams
from tests.bench.requests import open_asker
from tests.bench.stage import open_stage
from tests.bench.writer import Writer, decide_batches, grant, revoke
from tests.support.deployment import Deployment

SINGLES = 60
"""Commands handled alone, one after the other, in each run."""
STREAM_BATCH = 50
STREAM_BATCHES = 4
SLOWER = Goal(at_least=0.85)
LONGER = Goal(at_most=1.15)

HOW = (
    (
        "Logs of {sizes} events, made by SQL with as many receipts, each in a database of its own"
        " on one server; all are measured in each of {runs} runs, batch by batch and command by"
        " command in turns, and compared with the first. Rate: {append_batches} batches of 500"
        " decided grants for new patients through EventStore.append. Latency: the median of"
        " {singles} grants handled alone in this process (load receipt and history, decide,"
        " append), for new patients, nothing in memory."
    ),
    (
        "In each run new patients with {lengths} events (60 of the shortest, so that they stay"
        " short), 20 doctors granted and revoked in turn, in one log; a command worker has handled"
        " one command of each before, and was stopped. Cold: the history is loaded for every"
        " command. Warm: the state is in memory, as a worker that owns the partition has it. Rate:"
        " batches of 50 commands, warm. {singles} commands in each of {runs} runs, one of each"
        " length after the other, and compared with the shortest."
    ),
)


@dataclass
class Series:
    """What one log, or one patient, came to in each run."""

    rates: list[float] = field(default_factory=list)
    cold_ms: list[float] = field(default_factory=list)
    warm_ms: list[float] = field(default_factory=list)

    def add(self, rate: float, cold_ms: float, warm_ms: float | None = None) -> None:
        """Note one run."""
        self.rates.append(rate)
        self.cold_ms.append(cold_ms)
        self.warm_ms += [] if warm_ms is None else [warm_ms]


def measure(bench: Bench) -> Section:
    """Measure logs, then patients."""
    sizes = bench.sizes
    logs, patients = _logs(bench), _patients(bench)
    words = {
        **vars(sizes),
        "sizes": _words(sizes.log_sizes),
        "lengths": _words(sizes.stream_lengths),
        "singles": SINGLES,
    }
    figures = [
        *_figures("log of {:,}: append rate", "events/s", logs, "rates", SLOWER),
        *_figures("log of {:,}: latency, cold", "ms", logs, "cold_ms", LONGER),
        *_figures("patient of {:,}: rate, warm", "commands/s", patients, "rates", SLOWER),
        *_figures("patient of {:,}: latency, warm", "ms", patients, "warm_ms", LONGER),
        *_figures("patient of {:,}: latency, cold", "ms", patients, "cold_ms", LONGER),
    ]
    return Section("Growth", [line.format(**words) for line in HOW], figures)


def _words(numbers: Sequence[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


def _figures(
    name: str, unit: str, every: Mapping[int, Series], values: str, goal: Goal
) -> list[Figure]:
    """Compare each with the first."""
    (first, base), *others = every.items()
    reference = getattr(base, values)
    return [
        Figure(name.format(first), unit, reference),
        *(
            Figure(name.format(size), unit, getattr(one, values), reference, goal)
            for size, one in others
        ),
    ]


def _logs(bench: Bench) -> dict[int, Series]:
    sizes = bench.sizes
    with ExitStack() as stages:
        deployments = {
            size: stages.enter_context(open_stage(bench, "log")) for size in sizes.log_sizes
        }
        with bench.steps.step(f"growth: making logs of {_words(sizes.log_sizes)} events"):
            asyncio.run(_make_logs(deployments, sizes.partitions))
        return asyncio.run(_measure_logs(bench, deployments))


async def _make_logs(deployments: Mapping[int, Deployment], partitions: int) -> None:
    for size, deployment in deployments.items():
        if size:
            await make_log(deployment.event_store_url, size, partitions)


async def _measure_logs(bench: Bench, deployments: Mapping[int, Deployment]) -> dict[int, Series]:
    series = {size: Series() for size in deployments}
    pools = {size: await _pool(one) for size, one in deployments.items()}
    partitions = bench.sizes.partitions
    writers = {size: Writer(EventStore(pool), partitions) for size, pool in pools.items()}
    for run in range(bench.sizes.runs + 1):  # the first warms up
        with bench.steps.step(f"growth: logs, run {run} of {bench.sizes.runs}"):
            measured = await _measure_log(bench, writers, run)
        if run:
            for size, one in series.items():
                one.add(*measured[size])
    for pool in pools.values():
        await pool.close()
    return series


async def _measure_log(
    bench: Bench, writers: Mapping[int, Writer], run: int
) -> dict[int, tuple[float, float]]:
    """Return rate and cold latency of each, taken in turns."""
    many, size = bench.sizes.append_batches, BATCH
    batches = {
        log: decide_batches(many, size, PATIENTS, bench.sizes.partitions, f"patient-{run}")
        for log in writers
    }
    times: dict[int, list[float]] = defaultdict(list)
    singles: dict[int, list[float]] = defaultdict(list)
    for number in range(many):
        for log, writer in writers.items():
            times[log].append(await _timed(writer.append(batches[log][number])))
    for number in range(SINGLES):
        for log, writer in writers.items():
            command = grant(f"single-{run}-{number}", "doctor-1")
            singles[log].append(await _timed(writer.handle([command], {})))
    return {log: (many * size / sum(times[log]), 1000 * median(singles[log])) for log in writers}


async def _timed(work: Awaitable[object]) -> float:
    start = monotonic()
    await work
    return monotonic() - start


async def _pool(deployment: Deployment) -> Pool:
    return await open_pool(deployment.event_store_url, name="benchmark", size=1)


def _patients(bench: Bench) -> dict[int, Series]:
    sizes = bench.sizes
    with open_stage(bench, "streams") as deployment:
        with bench.steps.step(f"growth: patients with {_words(sizes.stream_lengths)} events"):
            asyncio.run(_make_patients(deployment, sizes.stream_lengths, sizes.runs))
        return asyncio.run(_measure_patients(bench, deployment))


def _names(length: int, run: int) -> list[str]:
    """Name the patients of a run: so many that none of them grows by much meanwhile."""
    count = max(1, min(SINGLES, 1_000 // length))
    return [f"patient-of-{length}-{run}-{number}" for number in range(count)]


async def _make_patients(deployment: Deployment, lengths: Sequence[int], runs: int) -> None:
    """Make histories, and let a worker handle one command of each: it may write snapshots."""
    url, partitions = deployment.event_store_url, deployment.partitions
    every = [(name, n) for n in lengths for run in range(runs + 1) for name in _names(n, run)]
    await make_streams(url, every, partitions)
    worker = deployment.start("command_service")
    await asyncio.to_thread(worker.wait_ready)
    async with open_asker(deployment.rabbitmq_url, partitions) as asker, asyncio.timeout(60):
        for name, _ in every:
            reply = await asker.command(Grant(str(uuid4()), name, "doctor-of-the-worker"))
            expect(reply["status"] == "accepted", f"a command was rejected: {reply}")
    expect(await asyncio.to_thread(worker.stop) == 0, "the command worker did not drain")
    pool = await _pool(deployment)
    await pool.execute("UPDATE partitions SET epoch = 0, owner = NULL")
    await pool.close()


async def _measure_patients(bench: Bench, deployment: Deployment) -> dict[int, Series]:
    pool = await _pool(deployment)
    writer = Writer(EventStore(pool), deployment.partitions)
    series = {length: Series() for length in bench.sizes.stream_lengths}
    for run in range(bench.sizes.runs + 1):  # the first warms up
        with bench.steps.step(f"growth: patients, run {run} of {bench.sizes.runs}"):
            measured = await _measure_patients_once(writer, bench.sizes.stream_lengths, run)
        if run:
            for length, one in series.items():
                one.add(*measured[length])
    await pool.close()
    return series


async def _measure_patients_once(
    writer: Writer, lengths: Sequence[int], run: int
) -> dict[int, tuple[float, float, float]]:
    """Return rate, cold and warm latency of each, taken in turns."""
    names = {length: _names(length, run) for length in lengths}
    known: dict[int, dict[str, Stream]] = {length: {} for length in lengths}

    async def handle(length: int, doctor_id: str, first: int, count: int) -> None:
        commands = _in_turns(names[length], doctor_id, first, count)
        known[length].update(await writer.handle(commands, known[length]))

    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(SINGLES):
        for length in lengths:
            known[length] = {}
            times["cold", length].append(await _timed(handle(length, "doctor-cold", number, 1)))
    for length in lengths:
        known[length] = await writer.store.read_streams(names[length])
    for number in range(SINGLES):
        for length in lengths:
            times["warm", length].append(await _timed(handle(length, "doctor-warm", number, 1)))
    for number in range(0, STREAM_BATCH * STREAM_BATCHES, STREAM_BATCH):
        for length in lengths:
            work = handle(length, "doctor-rate", number, STREAM_BATCH)
            times["rate", length].append(await _timed(work))
    return {
        length: (
            STREAM_BATCH * STREAM_BATCHES / sum(times["rate", length]),
            1000 * median(times["cold", length]),
            1000 * median(times["warm", length]),
        )
        for length in lengths
    }


def _in_turns(names: Sequence[str], doctor_id: str, first: int, count: int) -> list[ConsentCommand]:
    """Grant, revoke, grant … each patient's consent for one doctor: all of them are accepted."""
    make, patients = (grant, revoke), len(names)
    return [
        make[n // patients % 2](names[n % patients], doctor_id) for n in range(first, first + count)
    ]
