-- read_log
-- What follows a position in the log of a partition.
--
--   $1  partition       integer
--   $2  after_position  bigint
--   $3  most            integer
--
-- Returns   the recorded events, in the order of their positions.
SELECT partition, position, stream_id, stream_version, event_id, type, schema_version, data,
       recorded_at, correlation_id, causation_id, issued_by, traceparent, tracestate,
       CASE WHEN EXISTS (SELECT FROM generations)
            THEN (SELECT max(g.generation) FROM generations g
                   WHERE g.partition = events.partition AND g.after_position < events.position)
       END AS generation
  FROM events
 WHERE partition = $1::integer
   AND position > $2::bigint
 ORDER BY position
 LIMIT $3::integer
