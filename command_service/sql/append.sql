-- append
-- Add a batch to the logs of its partitions: events, receipts, and the counter rows they move,
-- all or nothing, provided this worker still owns every partition of the batch, and no command of
-- it was decided before.
-- The counter rows stay locked to the commit, so positions appear in commit order.
--
--   per partition
--   $1  partitions   integer[]
--   $2  epochs       bigint[]    the epoch under which this worker took each
--   $3  counts       integer[]   how many events it gets; 0 where all was rejected
--   per event
--   $4  partitions       integer[]
--   $5  ordinals         integer[]   1, 2, 3 ... within its partition's part of the batch
--   $6  stream_ids       text[]
--   $7  stream_versions  bigint[]
--   $8  event_ids        uuid[]
--   $9  types            text[]
--   $10 schema_versions  smallint[]
--   $11 data             text[]      JSON
--   $12 correlation_ids  text[]
--   $13 causation_ids    uuid[]
--   $14 issued_by        text[]
--   $15 traceparents     text[]
--   $16 tracestates      text[]
--   per receipt
--   $17 command_ids      uuid[]
--   $18 fingerprints     bytea[]
--   $19 patient_ids      text[]
--   $20 partitions       integer[]
--   $21 stream_versions  bigint[]    the patient's version after the command
--   $22 first_ordinals   integer[]   of its events; null for a rejection
--   $23 event_counts     integer[]
--   $24 errors           text[]      null where accepted
--   $25 messages         text[]
--   of the batch
--   $26 receipts_checked boolean    whether its receipts were read before: then they are not again
--
-- Returns   (partition, first_position, recorded_at), one row per partition.
-- Decided   one row of nulls: a command id has a receipt already; nothing was appended.
-- Fenced    no rows: another worker took one of the partitions; nothing was appended.
-- Conflict  events_stream_version_key: somebody appended first; read again, decide again.
-- Conflict  command_receipts_command_id_key: the command is being decided elsewhere just now.
WITH given AS (
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::integer[])
               AS given (partition, epoch, count)
), decided AS (
    SELECT FROM command_receipts
     WHERE NOT $26::boolean AND command_id = ANY ($17::uuid[])
     LIMIT 1
), owned AS (
    SELECT p.partition, given.count
      FROM partitions p JOIN given USING (partition, epoch)
     WHERE NOT EXISTS (SELECT FROM decided)
     ORDER BY p.partition
       FOR UPDATE OF p
), advanced AS (
    UPDATE partitions p
       SET position = p.position + owned.count,
           recorded_at = greatest(clock_timestamp(), p.recorded_at)
      FROM owned
     WHERE p.partition = owned.partition
       AND (SELECT count(*) FROM owned) = cardinality($1)
    RETURNING p.partition, p.position - owned.count AS before, p.recorded_at
), appended AS (
    INSERT INTO events (
        partition, position, stream_id, stream_version, event_id, type, schema_version, data,
        recorded_at, correlation_id, causation_id, issued_by, traceparent, tracestate)
    SELECT e.partition, advanced.before + e.ordinal, e.stream_id, e.stream_version, e.event_id,
           e.type, e.schema_version, e.data::json, advanced.recorded_at, e.correlation_id,
           e.causation_id, e.issued_by, e.traceparent, e.tracestate
      FROM unnest($4::integer[], $5::integer[], $6::text[], $7::bigint[], $8::uuid[], $9::text[],
                  $10::smallint[], $11::text[], $12::text[], $13::uuid[], $14::text[], $15::text[],
                  $16::text[])
           AS e (partition, ordinal, stream_id, stream_version, event_id, type, schema_version,
                 data, correlation_id, causation_id, issued_by, traceparent, tracestate)
      JOIN advanced USING (partition)
), receipted AS (
    -- In the order of their ids, so that two workers with the same ids never wait for each other.
    INSERT INTO command_receipts (
        command_id, fingerprint, patient_id, partition, stream_version, first_position,
        event_count, error, message, recorded_at)
    SELECT r.command_id, r.fingerprint, r.patient_id, r.partition, r.stream_version,
           advanced.before + r.first_ordinal, r.event_count, r.error, r.message,
           advanced.recorded_at
      FROM unnest($17::uuid[], $18::bytea[], $19::text[], $20::integer[], $21::bigint[],
                  $22::integer[], $23::integer[], $24::text[], $25::text[])
           AS r (command_id, fingerprint, patient_id, partition, stream_version, first_ordinal,
                 event_count, error, message)
      JOIN advanced USING (partition)
     ORDER BY r.command_id
)
SELECT partition, before + 1 AS first_position, recorded_at FROM advanced
 UNION ALL
SELECT NULL, NULL, NULL FROM decided
