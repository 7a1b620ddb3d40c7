"""Makes a log that is long already, by SQL: millions of events in a minute."""

import asyncpg

from shared.partition import partition_of

# Streams of five; `events` takes no UPDATE, so the cursors are moved to where it ends.
EVENTS = """
INSERT INTO events (partition, position, stream_id, stream_version, event_id, type, schema_version,
                    data, recorded_at, correlation_id, causation_id)
SELECT $1::integer, n, 'old-' || $1::integer || '-' || (n - 1) / 5, (n - 1) % 5 + 1,
       gen_random_uuid(), 'ConsentGranted', 1,
       json_build_object('patient_id', 'old-' || $1::integer || '-' || (n - 1) / 5,
                         'to_entity', 'doctor', 'to_id', 'doctor-' || (n - 1) % 5,
                         'target', 'exams'),
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
       json_build_object('patient_id', $3::text,
                         CASE WHEN n % 2 = 1 THEN 'to_entity' ELSE 'from_entity' END, 'doctor',
                         CASE WHEN n % 2 = 1 THEN 'to_id' ELSE 'from_id' END,
                         'doctor-' || (n - 1) / 2 % 20,
                         'target', 'exams'),
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
    connection = await asyncpg.connect(url, ssl=False)
    try:
        each = events // partitions
        for partition in range(partitions):
            await connection.execute(EVENTS, partition, each)
        await connection.execute(RECEIPTS, partitions, each * partitions)
        await connection.execute(HEADS, each)
        await connection.execute("ANALYZE events, command_receipts")
    finally:
        await connection.close()


async def make_stream(url: str, patient_id: str, events: int, partitions: int) -> None:
    """Add a patient with that many events: 20 doctors are granted and revoked the exams in turn."""
    connection = await asyncpg.connect(url, ssl=False)
    try:
        partition = partition_of(patient_id, partitions)
        before = await connection.fetchval(MOVE_HEAD, partition, events)
        await connection.execute(STREAM, partition, before, patient_id, events)
    finally:
        await connection.close()
