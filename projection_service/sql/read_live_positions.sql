-- read_live_positions
-- How far the log is projected in the read model, asked from where the shadow comes first.
--
-- Returns   (partition, position) per partition, in their order; 0 where nothing is projected.
SELECT p.partition, coalesce(c.position, 0) AS position
  FROM public.partitions p
  LEFT JOIN public.checkpoints c USING (partition)
 ORDER BY p.partition
