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
--   $4  decided_at   timestamptz[]   the time of its log that was decided by; null where none was
--   per event
--   $5  partitions       integer[]
--   $6  ordinals         integer[]   1, 2, 3 ... within its partition's part of the batch
--   $7  stream_ids       text[]
--   $8  stream_versions  bigint[]
--   $9  event_ids        uuid[]
--   $10  types            text[]
--   $11 schema_versions  smallint[]
--   $12 data             text[]      JSON
--   $13 correlation_ids  text[]
--   $14 causation_ids    uuid[]
--   $15 issued_by        text[]
--   $16 traceparents     text[]
--   $17 tracestates      text[]
--   per receipt
--   $18 command_ids      uuid[]
--   $19 fingerprints     bytea[]
--   $20 patient_ids      text[]
--   $21 partitions       integer[]
--   $22 stream_versions  bigint[]    the patient's version after the command
--   $23 first_ordinals   integer[]   of its events; null for a rejection
--   $24 event_counts     integer[]
--   $25 errors           text[]      null where accepted
--   $26 messages         text[]
--   $27 details          text[]      JSON; null where there are none
--   per end of a consent
--   $28 partitions       integer[]
--   $29 expires_at       timestamptz[]
--   $30 stream_ids       text[]
--   of the batch
--   $31 receipts_checked boolean    whether its receipts were read before: then they are not again
--   $32 positions    bigint[]    per partition: where its log ended at least when last heard of
--
-- Returns   (partition, first_position, recorded_at), one row per partition.
-- Decided   one row of nulls: a command id has a receipt already; nothing was appended.
-- Fenced    no rows: another worker took one of the partitions, or its log was set back under
--           this one; nothing was appended.
-- Conflict  events_stream_version_key: somebody appended first; read again, decide again.
-- Conflict  command_receipts_command_id_key: the command is being decided elsewhere just now.
WITH given AS (
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::timestamptz[],
                         $32::bigint[])
               AS given (partition, epoch, count, decided_at, position)
), decided AS (
    SELECT FROM command_receipts
     WHERE NOT $31::boolean AND command_id = ANY ($18::uuid[])
     LIMIT 1
), owned AS (
    SELECT p.partition, given.count, given.decided_at
      FROM partitions p JOIN given USING (partition, epoch)
     WHERE NOT EXISTS (SELECT FROM decided)
       AND p.position >= given.position
     ORDER BY p.partition
       FOR UPDATE OF p
), advanced AS (
    UPDATE partitions p
       SET position = p.position + owned.count,
           recorded_at = greatest(clock_timestamp(), p.recorded_at, owned.decided_at)
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
      FROM unnest($5::integer[], $6::integer[], $7::text[], $8::bigint[], $9::uuid[], $10::text[],
                  $11::smallint[], $12::text[], $13::text[], $14::uuid[], $15::text[], $16::text[],
                  $17::text[])
           AS e (partition, ordinal, stream_id, stream_version, event_id, type, schema_version,
                 data, correlation_id, causation_id, issued_by, traceparent, tracestate)
      JOIN advanced USING (partition)
), ending AS (
    INSERT INTO ends (partition, expires_at, stream_id)
    SELECT e.partition, e.expires_at, e.stream_id
      FROM unnest($28::integer[], $29::timestamptz[], $30::text[])
           AS e (partition, expires_at, stream_id)
      JOIN advanced USING (partition)
        ON CONFLICT DO NOTHING
), receipted AS (
    -- In the order of their ids, so that two workers with the same ids never wait for each other.
    INSERT INTO command_receipts (
        command_id, fingerprint, patient_id, partition, stream_version, first_position,
        event_count, error, message, details, recorded_at)
    SELECT r.command_id, r.fingerprint, r.patient_id, r.partition, r.stream_version,
           advanced.before + r.first_ordinal, r.event_count, r.error, r.message,
           r.details, advanced.recorded_at
      FROM unnest($18::uuid[], $19::bytea[], $20::text[], $21::integer[], $22::bigint[],
                  $23::integer[], $24::integer[], $25::text[], $26::text[], $27::text[])
           AS r (command_id, fingerprint, patient_id, partition, stream_version, first_ordinal,
                 event_count, error, message, details)
      JOIN advanced USING (partition)
     ORDER BY r.command_id
)
SELECT partition, before + 1 AS first_position, recorded_at FROM advanced
 UNION ALL
SELECT NULL, NULL, NULL FROM decided
