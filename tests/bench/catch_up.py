"""How fast a projection catches up, or is rebuilt, through ReadEvents."""

import asyncio
import json
from collections.abc import Sequence
from subprocess import TimeoutExpired
from time import monotonic

import asyncpg

from shared.postgres.statements import statement
from tests.bench.bench import Bench, Figure, Goal, Section, expect
from tests.bench.looking import LOOK_EVERY_S, STALLED_S, VISIBLE, counting
from tests.bench.old_log import make_log
from tests.bench.stage import open_stage
from tests.support.deployment import Deployment

PAGE = 500
READ_LOG = statement("command_service", "read_log")
GOAL = Goal(at_least=0.35, no_less_than=15_000)

HOW = (
    (
        "A log of {log_events:,} events in {partitions} partitions, streams of five, and queues"
        " that are empty. Catch-up: a projection worker begins with an empty read model and reads"
        " the whole log from a command worker; the clock runs from the first look that finds a"
        " checkpoint moved to the one that finds all at the head (every 20 ms), and what the first"
        " look found is not counted. {runs} runs."
    ),
    (
        "Limit: the same rows by asyncpg, in this process, by the statement that ReadEvents uses,"
        " in its pages of 500, one partition after the other; taken in turns."
    ),
    (
        "Rebuild: `python -m projection_service rebuild --json` with both workers running and"
        " idle; its own figures of events and seconds, from the first page to the switch."
    ),
)


def measure(bench: Bench) -> Section:
    """Catch up and read in turns."""
    sizes = bench.sizes
    with open_stage(bench, "catch_up") as deployment:
        with bench.steps.step(f"catch-up: making a log of {sizes.log_events:,} events"):
            asyncio.run(make_log(deployment.event_store_url, sizes.log_events, sizes.partitions))
        command = deployment.start("command_service")
        command.wait_ready()
        caught, read, rebuilt = [], [], []
        for number in range(1, sizes.runs + 1):
            with bench.steps.step(f"catch-up: run {number} of {sizes.runs}"):
                _empty_the_model(bench, deployment)
                caught.append(asyncio.run(_catch_up(bench, deployment)))
                read.append(asyncio.run(_read(deployment)))
                rebuilt.append(_rebuild(deployment))
                deployment.workers[-1].stop()
    return Section(
        "Catch-up and rebuild through ReadEvents",
        [line.format(**vars(sizes)) for line in HOW],
        [
            Figure("catch-up", "events/s", caught, read, GOAL),
            _rebuild_figure(rebuilt, read),
        ],
    )


async def _catch_up(bench: Bench, deployment: Deployment) -> float:
    async with counting(deployment.read_model_url, VISIBLE) as visible:
        worker = deployment.start("projection_service")
        start = moved = monotonic()
        first = found = 0
        while found < bench.sizes.log_events:
            await asyncio.sleep(LOOK_EVERY_S)
            before, found = found, await visible()
            if found > before:
                moved = monotonic()
                start, first = (start, first) if first else (moved, found)
            what = f"only {found:,} events caught up with: {worker.log[-1000:]}"
            expect(monotonic() < moved + STALLED_S, what)
    await asyncio.to_thread(worker.wait_ready)
    return (found - first) / (moved - start) if moved > start else 0.0


def _empty_the_model(bench: Bench, deployment: Deployment) -> None:
    name, server = deployment.read_model_url.rsplit("/", 1)[1], bench.sandbox.read_model_server
    server.drop_database(name)
    server.create_database(name, bench.template)


async def _read(deployment: Deployment) -> float:
    """Read the log page by page; return rows per second."""
    connection = await asyncpg.connect(deployment.event_store_url, ssl=False)
    try:
        statement_ = await connection.prepare(READ_LOG)
        start, rows = monotonic(), 0
        for partition in range(deployment.partitions):
            position = 0
            while page := await statement_.fetch(partition, position, PAGE):
                position = page[-1]["position"]
                rows += len(page)
        return rows / (monotonic() - start)
    finally:
        await connection.close()


def _rebuild_figure(rebuilt: Sequence[float | None], read: Sequence[float]) -> Figure:
    """Compare the runs that ended."""
    ended = [(one, limit) for one, limit in zip(rebuilt, read, strict=True) if one is not None]
    late = len(rebuilt) - len(ended)
    name = f"rebuild ({late} did not end)" if late else "rebuild"
    return Figure(name, "events/s", [r for r, _ in ended], [limit for _, limit in ended], GOAL)


def _rebuild(deployment: Deployment) -> float | None:
    """Rebuild; None where it did not end."""
    try:
        done = deployment.run("projection_service", "rebuild", "--json")
    except TimeoutExpired:
        return None
    expect(done.returncode == 0, f"rebuild: {done.stderr[-1000:]}")
    told = json.loads(done.stdout)
    return float(told["events"] / told["seconds"])
