-- read_positions
-- How far the log is projected.
--
-- Returns   (partition, position) per partition, in their order; 0 where nothing is projected.
SELECT p.partition, coalesce(c.position, 0) AS position
  FROM partitions p
  LEFT JOIN checkpoints c USING (partition)
 ORDER BY p.partition
