"""How long commands take while very many consents end at one moment."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic

import asyncpg

from tests.bench.bench import Bench, Figure, Goal, Section, expect, percentile
from tests.bench.grants import Grant, make_grants
from tests.bench.requests import Asker, open_asker
from tests.bench.stage import open_stage
from tests.support.deployment import Deployment

RATE_PER_S = 100
BEFORE_S = 30.0
CALM_S = 3.0
SLOWER = Goal(no_more_than=100)

GRANTS = """
INSERT INTO events (partition, position, stream_id, stream_version, event_id, type, schema_version,
                    data, recorded_at, correlation_id, causation_id)
SELECT $1::integer, n, 'ends-' || $1::integer || '-' || n, 1, gen_random_uuid(),
       'ConsentGranted', 2,
       ('{"patient_id":"ends-' || $1::integer || '-' || n || '","to_entity":"doctor",'
        '"to_id":"doctor-1","target":"exams","expires_at":"' || $3::text || '"}')::json,
       now(), 'an-old-correlation-id-of-36-characters', gen_random_uuid()
  FROM generate_series(1, $2::bigint) AS n
"""
ENDS = """
INSERT INTO ends
SELECT $1::integer, $3::text::timestamptz, 'ends-' || $1::integer || '-' || n
  FROM generate_series(1, $2::bigint) AS n
"""
HEADS = "UPDATE partitions SET position = $1::bigint, published_position = $1::bigint"

HOW = (
    (
        "{ends:,} grants of as many patients, made by SQL, end at one moment, while grants for"
        " other patients are sent at {rate}/s by the clock, from three seconds before. Reply: as in"
        " Latency, of the commands before that moment, and of those from it until the last end is"
        " recorded. One command worker; no projection, so that what is measured is its alone."
    ),
)


def measure(bench: Bench) -> Section:
    """Run it once in each run, each time with a log of its own."""
    sizes = bench.sizes
    calm: list[float] = []
    busy: list[float] = []
    rates: list[float] = []
    for run in range(1, sizes.runs + 1):
        with open_stage(bench, "midnight") as deployment:
            with bench.steps.step(f"midnight: making {sizes.ends:,} ends, run {run}"):
                midnight = asyncio.run(_make(deployment, sizes.ends))
                deployment.start("command_service").wait_ready()
            with bench.steps.step(f"midnight: run {run} of {sizes.runs}"):
                before, during, seconds = asyncio.run(_run(deployment, midnight))
        calm.append(1000 * percentile(before, 99))
        busy.append(1000 * percentile(during, 99))
        rates.append(sizes.ends / seconds)
    how = [line.format(ends=sizes.ends, rate=RATE_PER_S) for line in HOW]
    return Section(
        "Midnight",
        how,
        [
            Figure("command → reply, before that moment, p99", "ms", calm),
            Figure("command → reply, while ends are recorded, p99", "ms", busy, goal=SLOWER),
            Figure("ends recorded", "events/s", rates),
        ],
    )


async def _make(deployment: Deployment, ends: int) -> datetime:
    """Fill an empty log with grants that end soon, all published."""
    connection = await asyncpg.connect(deployment.event_store_url, ssl=False)
    each = ends // deployment.partitions
    midnight = datetime.now(UTC) + timedelta(seconds=BEFORE_S + ends / 30_000)
    written = midnight.isoformat(timespec="microseconds").replace("+00:00", "Z")
    for number in range(deployment.partitions):
        await connection.execute(GRANTS, number, each, written)
        await connection.execute(ENDS, number, each, written)
    await connection.execute(HEADS, each)
    await connection.execute("ANALYZE events, ends")
    await connection.close()
    return midnight


async def _run(
    deployment: Deployment, midnight: datetime
) -> tuple[Sequence[float], Sequence[float], float]:
    """Return the times to the reply before and during, and how long the ends took."""
    loads = iter(make_grants(10_000, 100))
    before, during = list[float](), list[float]()
    wait = (midnight - datetime.now(UTC)).total_seconds() - CALM_S
    expect(wait > 0, "the ends came before the worker was ready")
    await asyncio.sleep(wait)
    start = monotonic()
    async with open_asker(deployment.rabbitmq_url, deployment.partitions) as asker:
        recording = asyncio.create_task(_until_recorded(deployment))
        tasks: list[asyncio.Task[None]] = []
        while not recording.done():
            due = start + len(tasks) / RATE_PER_S
            await asyncio.sleep(max(0.0, due - monotonic()))
            times = before if due < start + CALM_S - 0.5 else during
            tasks.append(asyncio.create_task(_one(asker, next(loads), due, times)))
        await asyncio.gather(*tasks)
        await recording
    return before, during, monotonic() - start - CALM_S


async def _one(asker: Asker, grant: Grant, due: float, times: list[float]) -> None:
    reply = await asker.command(grant)
    expect(reply["status"] == "accepted", f"a command was rejected: {reply}")
    times.append(monotonic() - due)


async def _until_recorded(deployment: Deployment) -> None:
    connection = await asyncpg.connect(deployment.event_store_url, ssl=False)
    try:
        while await connection.fetchval("SELECT EXISTS (SELECT FROM ends)"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    finally:
        await connection.close()
