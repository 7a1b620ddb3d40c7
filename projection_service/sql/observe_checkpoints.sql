-- observe_checkpoints
-- How far each partition is projected, and whether somebody works on it.
--
-- Returns   (partition, position, is_leased), a row per partition.
SELECT p.partition, coalesce(c.position, 0) AS position,
       coalesce(p.leased_until > now(), false) AS is_leased
  FROM partitions p
  LEFT JOIN checkpoints c USING (partition)
