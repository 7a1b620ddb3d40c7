-- forget_ends
-- Forget ends of consents that were looked into, where their partitions are still this worker's.
-- Nobody takes a partition over meanwhile: its new owner may need an end of that very moment.
--
--   $1  partitions  integer[]
--   $2  epochs      bigint[]    the epoch under which this worker took each
--   per end
--   $3  partitions  integer[]
--   $4  expires_at  timestamptz[]
--   $5  stream_ids  text[]
WITH owned AS (
    SELECT p.partition
      FROM partitions p
      JOIN unnest($1::integer[], $2::bigint[]) AS given (partition, epoch)
     USING (partition, epoch)
     ORDER BY p.partition
       FOR SHARE OF p
)
DELETE FROM ends e
 USING unnest($3::integer[], $4::timestamptz[], $5::text[])
       AS looked_into (partition, expires_at, stream_id), owned
 WHERE e.partition = owned.partition
   AND e.partition = looked_into.partition
   AND e.expires_at = looked_into.expires_at
   AND e.stream_id = looked_into.stream_id
