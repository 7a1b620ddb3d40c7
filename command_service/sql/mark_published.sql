-- mark_published
-- Remember how far the broker has confirmed the events of some partitions.
-- The rows are locked in the order of the partitions, as an append locks them.
--
--   $1  partitions  integer[]
--   $2  epochs      bigint[]
--   $3  positions   bigint[]   only ever moves forward
WITH locked AS (
    SELECT p.partition, given.position
      FROM partitions p
      JOIN unnest($1::integer[], $2::bigint[], $3::bigint[]) AS given (partition, epoch, position)
           USING (partition, epoch)
     WHERE p.published_position < given.position
     ORDER BY p.partition
       FOR NO KEY UPDATE OF p
)
UPDATE partitions p
   SET published_position = locked.position
  FROM locked
 WHERE p.partition = locked.partition
