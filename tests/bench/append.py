"""How many events per second the event store appends, against bare inserts of the same rows."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from command_service.domain.decisions import Decision
from command_service.store.event_store import EventStore
from shared.postgres.connection import Pool
from shared.postgres.database import open_pool
from tests.bench.bench import Bench, Figure, Goal, Section
from tests.bench.stage import open_stage
from tests.bench.writer import Writer, decide_batches

BATCH = 500
PATIENTS = 1_000

# The same columns of the same tables, keys included; no lock, no epoch, no counter, no joins.
BARE = """
WITH appended AS (
    INSERT INTO events (
        partition, position, stream_id, stream_version, event_id, type, schema_version, data,
        recorded_at, correlation_id, causation_id, issued_by, traceparent, tracestate)
    SELECT * FROM unnest(
        $1::integer[], $2::bigint[], $3::text[], $4::bigint[], $5::uuid[], $6::text[],
        $7::smallint[], $8::json[], $9::timestamptz[], $10::text[], $11::uuid[], $12::text[],
        $13::text[], $14::text[])
)
INSERT INTO command_receipts (
    command_id, fingerprint, patient_id, partition, stream_version, first_position,
    event_count, error, message, recorded_at)
SELECT * FROM unnest(
    $15::uuid[], $16::bytea[], $17::text[], $18::integer[], $19::bigint[], $20::bigint[],
    $21::integer[], $22::text[], $23::text[], $24::timestamptz[])
"""

HOW = (
    (
        "{append_batches} batches of 500 decided grants for 1,000 new patients over {partitions}"
        " partitions, in this process, through EventStore.append: one event and one receipt each,"
        " one batch after the other; deciding is not in it. {runs} runs."
    ),
    (
        "Limit: a bare INSERT … SELECT unnest of the same rows into the same tables of another"
        " database, events and receipts in one statement, with their keys, without locks, epochs,"
        " counters or joins; the columns are made before the clock starts. Taken in turns."
    ),
)


def measure(bench: Bench) -> Section:
    """Run both in turns, each in tables of its own."""
    with (
        open_stage(bench, "append") as one,
        open_stage(bench, "insert") as other,
        bench.steps.step("append: in turns with bare inserts"),
    ):
        pairs = asyncio.run(_run(bench, one.event_store_url, other.event_store_url))
    appended, inserted = zip(*pairs, strict=True)
    goal = Goal(at_least=0.6)
    figure = Figure("append", "events/s", list(appended), list(inserted), goal)
    return Section("Append", [line.format(**vars(bench.sizes)) for line in HOW], [figure])


async def _run(bench: Bench, url: str, bare_url: str) -> list[tuple[float, float]]:
    pool = await open_pool(url, name="benchmark", size=1)
    bare_pool = await open_pool(bare_url, name="benchmark", size=1)
    writer = Writer(EventStore(pool), bench.sizes.partitions)
    heads = dict.fromkeys(range(bench.sizes.partitions), 0)
    try:
        pairs = []
        for number in range(bench.sizes.runs + 1):
            batches = decide_batches(
                bench.sizes.append_batches,
                BATCH,
                PATIENTS,
                bench.sizes.partitions,
                f"patient-{number}",
            )
            rows = [_rows(batch, heads) for batch in batches]
            pairs.append((await append_rate(writer, batches), await _insert_rate(bare_pool, rows)))
        return pairs[1:]  # the first run opens connections and prepares statements
    finally:
        await pool.close()
        await bare_pool.close()


async def append_rate(writer: Writer, batches: Sequence[Sequence[Decision]]) -> float:
    """Append batch after batch; return events per second."""
    start = monotonic()
    for batch in batches:
        await writer.append(batch)
    return sum(map(len, batches)) / (monotonic() - start)


async def _insert_rate(pool: Pool, rows: Sequence[Sequence[list[Any]]]) -> float:
    start = monotonic()
    for columns in rows:
        await pool.execute(BARE, *columns)
    return sum(len(columns[0]) for columns in rows) / (monotonic() - start)


def _rows(batch: Iterable[Decision], heads: dict[int, int]) -> list[list[Any]]:
    """Write the columns that the batch comes to."""
    now = datetime.now(UTC)
    events, receipts = [], []
    for decision in batch:
        one, (new,) = decision.received, decision.events
        heads[one.partition] += 1
        patient_id, position = one.patient_id, heads[one.partition]
        place = (one.partition, position, patient_id, new.version, new.id)
        content = (type(new.event).__name__, 1, new.event.model_dump_json(), now)
        cause = (one.correlation_id, one.command_id, None, None, None)
        events.append((*place, *content, *cause))
        outcome = (patient_id, one.partition, decision.version, position, 1, None, None, now)
        receipts.append((one.command_id, one.fingerprint, *outcome))
    return [list(column) for table in (events, receipts) for column in zip(*table, strict=True)]
