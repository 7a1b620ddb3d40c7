-- read_set_back
-- Which partitions stand on what the log does not have any more.
--
-- Returns   (partition, position, since), in their order.
SELECT partition, position, set_back_since AS since
  FROM checkpoints
 WHERE set_back_since IS NOT NULL
 ORDER BY partition
