-- append
-- Add a batch to the logs of its partitions: events, receipts, and the counter rows they move,
-- all or nothing, provided this worker still owns every partition of the batch, and no command of
-- it was decided before.
-- The counter rows stay locked to the commit, so positions appear in commit order.
--
-- Each parameter but the last is a list of objects in JSON: a driver encodes a column at a time,
-- and for a batch of one that took it longer than the server needs to append it.
--
--   $1  partitions  json   per partition: partition, epoch (under which this worker took it), count
--                          (of its events; 0 where all was rejected), decided_at (the time of its
--                          log that was decided by; null where none was), position (where its log
--                          ended at least when last heard of), published (up to where the broker
--                          has confirmed its events; 0 where that is not known)
--   $2  events      json   per event, as below; ordinal: 1, 2, 3 ... within its partition's part of
--                          the batch; data: JSON
--   $3  receipts    json   per receipt, as below; stream_version: the patient's after the command;
--                          first_ordinal: of its events, null for a rejection; error: null where
--                          accepted; details: JSON, null where there are none
--   $4  ends        json   per end of a consent
--   $5  receipts_checked  boolean   whether the receipts were read before: then they are not again
--
-- Returns   (partition, first_position, recorded_at), one row per partition.
-- Decided   one row of nulls: a command id has a receipt already; nothing was appended.
-- Fenced    no rows: another worker took one of the partitions, or its log was set back under
--           this one; nothing was appended.
-- Conflict  events_stream_version_key: somebody appended first; read again, decide again.
-- Conflict  command_receipts_command_id_key: the command is being decided elsewhere just now.
WITH given AS (
    SELECT * FROM json_to_recordset($1::json)
               AS given (partition integer, epoch bigint, count integer, decided_at timestamptz,
                         position bigint, published bigint)
), receipts AS (
    SELECT * FROM json_to_recordset($3::json)
               AS r (command_id uuid, fingerprint bytea, patient_id text, partition integer,
                     stream_version bigint, first_ordinal integer, event_count integer, error text,
                     message text, details text)
), decided AS (
    SELECT FROM command_receipts
     WHERE NOT $5::boolean AND command_id = ANY (ARRAY (SELECT command_id FROM receipts))
     LIMIT 1
), owned AS (
    SELECT p.partition, given.count, given.decided_at, given.published
      FROM partitions p JOIN given USING (partition, epoch)
     WHERE NOT EXISTS (SELECT FROM decided)
       AND p.position >= given.position
     ORDER BY p.partition
       FOR UPDATE OF p
), advanced AS (
    UPDATE partitions p
       SET position = p.position + owned.count,
           published_position = greatest(p.published_position, owned.published),
           recorded_at = greatest(clock_timestamp(), p.recorded_at, owned.decided_at)
      FROM owned
     WHERE p.partition = owned.partition
       AND (SELECT count(*) FROM owned) = (SELECT count(*) FROM given)
    RETURNING p.partition, p.position - owned.count AS before, p.recorded_at
), appended AS (
    INSERT INTO events (
        partition, position, stream_id, stream_version, event_id, type, schema_version, data,
        recorded_at, correlation_id, causation_id, issued_by, traceparent, tracestate)
    SELECT e.partition, advanced.before + e.ordinal, e.stream_id, e.stream_version, e.event_id,
           e.type, e.schema_version, e.data::json, advanced.recorded_at, e.correlation_id,
           e.causation_id, e.issued_by, e.traceparent, e.tracestate
      FROM json_to_recordset($2::json)
           AS e (partition integer, ordinal integer, stream_id text, stream_version bigint,
                 event_id uuid, type text, schema_version smallint, data text, correlation_id text,
                 causation_id uuid, issued_by text, traceparent text, tracestate text)
      JOIN advanced USING (partition)
), ending AS (
    INSERT INTO ends (partition, expires_at, stream_id)
    SELECT e.partition, e.expires_at, e.stream_id
      FROM json_to_recordset($4::json)
           AS e (partition integer, expires_at timestamptz, stream_id text)
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
      FROM receipts r
      JOIN advanced USING (partition)
     ORDER BY r.command_id
)
SELECT partition, before + 1 AS first_position, recorded_at FROM advanced
 UNION ALL
SELECT NULL, NULL, NULL FROM decided
