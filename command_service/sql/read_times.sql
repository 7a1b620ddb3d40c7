-- read_times
-- What time it is in the logs of some partitions: the server's, and never before what they hold.
--
--   $1  partitions  integer[]
--
-- Returns   (partition, now), one row per partition.
SELECT partition, greatest(clock_timestamp(), recorded_at) AS now
  FROM partitions
 WHERE partition = ANY ($1::integer[])
