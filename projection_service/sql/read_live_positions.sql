-- read_live_positions
-- How far the log is projected in the read model, asked from where the shadow comes first.
--
-- Returns   (partition, position, event_id, generation) per partition, in their order; 0 where
--           nothing is projected, null where the event is not known.
SELECT p.partition, coalesce(c.position, 0) AS position, c.event_id, c.generation
  FROM public.partitions p
  LEFT JOIN public.checkpoints c USING (partition)
 ORDER BY p.partition
