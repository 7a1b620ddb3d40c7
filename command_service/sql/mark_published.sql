-- mark_published
-- Remember how far the broker has confirmed the events of some partitions.
--
--   $1  partitions  integer[]
--   $2  epochs      bigint[]
--   $3  positions   bigint[]   only ever moves forward
UPDATE partitions p
   SET published_position = given.position
  FROM unnest($1::integer[], $2::bigint[], $3::bigint[]) AS given (partition, epoch, position)
 WHERE p.partition = given.partition
   AND p.epoch = given.epoch
   AND p.published_position < given.position
