"""Makes a log that is long already, by SQL: millions of events in a minute."""

import asyncio
from collections.abc import Iterable
from typing import Any

import asyncpg

from shared.values.partition import partition_of

# Streams of five; `events` takes no UPDATE, so the cursors are moved to where it ends.
EVENTS = """
INSERT INTO events (partition, position, stream_id, stream_version, event_id, type, schema_version,
                    data, recorded_at, correlation_id, causation_id)
SELECT $1::integer, n, 'old-' || $1::integer || '-' || (n - 1) / 5, (n - 1) % 5 + 1,
       gen_random_uuid(), 'ConsentGranted', 1,
       ('{"patient_id":"old-' || $1::integer || '-' || (n - 1) / 5 || '","to_entity":"doctor",'
        '"to_id":"doctor-' || (n - 1) % 5 || '","target":"exams"}')::json,
       now(), 'an-old-correlation-id-of-36-characters', gen_random_uuid()
  FROM generate_series(1, $2::bigint) AS n
"""
RECEIPTS = """
INSERT INTO command_receipts (command_id, fingerprint, patient_id, partition, stream_version,
                              first_position, event_count, recorded_at)
SELECT command_id, '\\x00112233445566778899aabbccddeeff'::bytea,
       'old-' || n % $1::integer || '-' || n / 5, n % $1::integer, n % 5 + 1, n, 1, now()
  FROM (SELECT n, gen_random_uuid() AS command_id
          FROM generate_series(1, $2::bigint) AS n
         ORDER BY 2) AS made
"""
HEADS = "UPDATE partitions SET position = $1::bigint, published_position = $1::bigint"
STREAM = """
INSERT INTO events (partition, position, stream_id, stream_version, event_id, type, schema_version,
                    data, recorded_at, correlation_id, causation_id)
SELECT $1::integer, $2::bigint + n, $3::text, n, gen_random_uuid(),
       CASE WHEN n % 2 = 1 THEN 'ConsentGranted' ELSE 'ConsentRevoked' END, 1,
       replace('{"patient_id":"' || $3::text || '","?_entity":"doctor","?_id":"doctor-'
               || (n - 1) / 2 % 20 || '","target":"exams"}',
               '?', CASE WHEN n % 2 = 1 THEN 'to' ELSE 'from' END)::json,
       now(), 'an-old-correlation-id-of-36-characters', gen_random_uuid()
  FROM generate_series(1, $4::bigint) AS n
"""
MOVE_HEAD = """
UPDATE partitions SET position = position + $2::bigint,
                      published_position = position + $2::bigint
 WHERE partition = $1::integer
RETURNING position - $2::bigint
"""


async def make_log(url: str, events: int, partitions: int) -> None:
    """Fill an empty log with events, all published, and as many receipts."""
    each = events // partitions
    every = range(partitions)
    await asyncio.gather(
        _execute(url, *((EVENTS, number, each) for number in every)),
        _execute(url, (RECEIPTS, partitions, each * partitions)),
    )
    await _execute(url, (HEADS, each), ("ANALYZE events, command_receipts",), ("CHECKPOINT",))


async def _execute(url: str, *statements: tuple[Any, ...]) -> None:
    connection = await asyncpg.connect(url, ssl=False)
    try:
        for statement in statements:
            await connection.execute(*statement)
    finally:
        await connection.close()


async def make_streams(url: str, streams: Iterable[tuple[str, int]], partitions: int) -> None:
    """Add patients with so many events: 20 doctors are granted and revoked the exams in turn."""
    connection = await asyncpg.connect(url, ssl=False)
    try:
        for patient_id, events in streams:
            partition = partition_of(patient_id, partitions)
            before = await connection.fetchval(MOVE_HEAD, partition, events)
            await connection.execute(STREAM, partition, before, patient_id, events)
    finally:
        await connection.close()
