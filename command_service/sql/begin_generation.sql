-- begin_generation
-- Begin a new generation of a partition's log behind where it ends now, as long as it is owned.
-- Numbers grow with the time, so that a log that was restored never hands one out a second time.
--
--   $1  partition  integer
--   $2  epoch      bigint    the epoch under which this worker took it
INSERT INTO generations (partition, generation, after_position)
SELECT p.partition,
       greatest((SELECT coalesce(max(generation), 1) + 1 FROM generations),
                floor(extract(epoch FROM clock_timestamp()))::bigint),
       p.position
  FROM partitions p
 WHERE p.partition = $1::integer
   AND p.epoch = $2::bigint
