-- read_log_of_patient
-- What follows a position in the log of a partition, of one patient alone: by the stream's key, so
-- that it costs what the patient's own history is long, not what the partition's log is.
--
--   $1  after_position  bigint
--   $2  most            integer
--   $3  patient_id      text
--
-- Returns   the recorded events, in the order of their positions, which is that of their versions.
SELECT partition, position, stream_id, stream_version, event_id, type, schema_version, data,
       recorded_at, correlation_id, causation_id, issued_by, traceparent, tracestate,
       CASE WHEN EXISTS (SELECT FROM generations)
            THEN (SELECT max(g.generation) FROM generations g
                   WHERE g.partition = events.partition AND g.after_position < events.position)
       END AS generation
  FROM events
 WHERE stream_id = $3::text
   AND position + 0 > $1::bigint  -- not by the partition's key, however few positions follow
 ORDER BY stream_version
 LIMIT $2::integer
