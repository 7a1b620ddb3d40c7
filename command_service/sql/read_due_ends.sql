-- read_due_ends
-- The earliest ends of consents that have come, by the time of their partition's log.
--
--   $1  partitions  integer[]
--   $2  most        integer
--   $3  without     text[]     patients whose ends are left for later
--
-- Returns   (partition, expires_at, stream_id, overdue_s), the earliest first.
SELECT due.partition, due.expires_at, due.stream_id,
       extract(epoch FROM statement_timestamp() - due.expires_at)::float8 AS overdue_s
  FROM partitions p
 CROSS JOIN LATERAL (
       SELECT e.partition, e.expires_at, e.stream_id
         FROM ends e
        WHERE e.partition = p.partition
          AND e.expires_at <= greatest(statement_timestamp(), p.recorded_at)
          AND e.stream_id <> ALL ($3::text[])
        ORDER BY e.expires_at
        LIMIT $2::integer) AS due
 WHERE p.partition = ANY ($1::integer[])
 ORDER BY due.expires_at
 LIMIT $2::integer
