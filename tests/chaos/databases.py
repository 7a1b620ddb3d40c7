"""Reads what the two databases hold, as evidence, and has them witness who wrote it."""

import json
from collections import defaultdict
from datetime import UTC, datetime

import asyncpg

from tests.chaos.evidence import ConsentRow, Evidence, LogRow, Receipt

WITNESS = """
CREATE TABLE trespasses (
    at        timestamptz DEFAULT clock_timestamp(),
    written   text,
    partition integer,
    writer    text,
    owner     text
);
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO trespasses (written, partition, writer, owner)
    SELECT TG_TABLE_NAME, p.partition, current_setting('application_name'), p.owner
      FROM partitions p
     WHERE p.partition = NEW.partition
       AND p.owner IS NOT NULL  -- what nobody has taken since is still the last owner's
       AND right(p.owner, 63) <> current_setting('application_name');
    RETURN NULL;
END
$$;
"""
"""A worker's connections carry the name under which it owns partitions. Whoever writes holds the
partition's row, so that its owner can't change meanwhile."""
EVENT_STORE_WITNESSES = """
CREATE TRIGGER witness AFTER INSERT ON events
    FOR EACH ROW EXECUTE FUNCTION witness();
CREATE TRIGGER witness AFTER INSERT ON command_receipts
    FOR EACH ROW EXECUTE FUNCTION witness();
"""
READ_MODEL_WITNESSES = """
CREATE TRIGGER witness AFTER UPDATE ON checkpoints
    FOR EACH ROW WHEN (OLD.position <> NEW.position) EXECUTE FUNCTION witness();
"""


async def fetch(url: str, sql: str) -> list[asyncpg.Record]:
    """Read rows, with a connection of their own."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(sql)
    finally:
        await connection.close()


async def decided_ids(event_store_url: str) -> set[str]:
    """Return the ids of all commands that have an outcome."""
    rows = await fetch(event_store_url, "SELECT command_id::text AS id FROM command_receipts")
    return {row["id"] for row in rows}


async def cursors(event_store_url: str, read_model_url: str) -> dict[int, tuple[int, int, int]]:
    """Return position, published position and checkpoint of each partition."""
    heads = await fetch(event_store_url, "SELECT * FROM partitions ORDER BY partition")
    rows = await fetch(read_model_url, "SELECT * FROM checkpoints")
    reached = {row["partition"]: row["position"] for row in rows}
    return {
        row["partition"]: (
            row["position"],
            row["published_position"],
            reached.get(row["partition"], 0),
        )
        for row in heads
    }


async def owners(url: str) -> dict[str, set[int]]:
    """Return what each worker owns, by the workers' ids."""
    rows = await fetch(url, "SELECT owner, partition FROM partitions WHERE leased_until > now()")
    owned: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        owned[row["owner"].partition("/")[0]].add(row["partition"])
    return owned


async def add_event_store(evidence: Evidence, url: str) -> None:
    """Add what the event store holds."""
    evidence.read_at = datetime.now(UTC)
    evidence.log = [_log_row(row) for row in await fetch(url, "SELECT * FROM events")]
    evidence.receipts = [
        _receipt(row) for row in await fetch(url, "SELECT * FROM command_receipts")
    ]
    for row in await fetch(url, "SELECT * FROM partitions"):
        evidence.positions[row["partition"]] = row["position"]
        evidence.published_positions[row["partition"]] = row["published_position"]
    evidence.trespasses = [*evidence.trespasses, *await trespasses(url)]


async def add_read_model(evidence: Evidence, url: str) -> None:
    """Add what the read model holds."""
    evidence.consents = [_consent(row) for row in await fetch(url, "SELECT * FROM patient_consent")]
    for row in await fetch(url, "SELECT * FROM patients"):
        evidence.patient_versions[row["patient_id"]] = row["version"]
    for row in await fetch(url, "SELECT * FROM checkpoints"):
        evidence.checkpoints[row["partition"]] = row["position"]
    evidence.trespasses = [*evidence.trespasses, *await trespasses(url)]
    evidence.parked = len(await fetch(url, "SELECT FROM parked_events"))


async def set_up_witnesses(event_store_url: str, read_model_url: str) -> None:
    """Have each database write down who writes to a partition that another worker owns."""
    for url, tables in (
        (event_store_url, EVENT_STORE_WITNESSES),
        (read_model_url, READ_MODEL_WITNESSES),
    ):
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(WITNESS + tables)
        finally:
            await connection.close()


async def trespasses(url: str) -> list[str]:
    """Return what the witness wrote down."""
    rows = await fetch(url, "SELECT * FROM trespasses ORDER BY at")
    return [
        f"{row['writer']} wrote to {row['written']} of partition {row['partition']}"
        f" at {row['at']:%H:%M:%S.%f}, when {row['owner']} owned it"
        for row in rows
    ]


def _log_row(row: asyncpg.Record) -> LogRow:
    return LogRow(
        partition=row["partition"],
        position=row["position"],
        stream_id=row["stream_id"],
        stream_version=row["stream_version"],
        event_id=str(row["event_id"]),
        type=row["type"],
        schema_version=row["schema_version"],
        data=json.loads(row["data"]),
        recorded_at=row["recorded_at"],
        correlation_id=row["correlation_id"],
        causation_id=str(row["causation_id"]),
    )


def _receipt(row: asyncpg.Record) -> Receipt:
    return Receipt(
        command_id=str(row["command_id"]),
        patient_id=row["patient_id"],
        partition=row["partition"],
        stream_version=row["stream_version"],
        first_position=row["first_position"],
        event_count=row["event_count"],
        error=row["error"],
        message=row["message"],
        recorded_at=row["recorded_at"],
        details=json.loads(row["details"] or "[]"),
    )


def _consent(row: asyncpg.Record) -> ConsentRow:
    return ConsentRow(
        patient_id=row["patient_id"],
        entity=row["entity_name"],
        entity_id=row["entity_id"],
        permissions=tuple(row["permissions"]),
        requested=tuple(row["requested"]),
        ends=_ends(row["ends"]),
        requested_ends=_ends(row["requested_ends"]),
    )


def _ends(text: str | None) -> tuple[tuple[str, datetime], ...]:
    found = json.loads(text or "{}").items()
    return tuple(sorted((target, datetime.fromisoformat(end)) for target, end in found))
