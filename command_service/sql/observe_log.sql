-- observe_log
-- How far the log of each partition goes and is published, and who works on it.
--
-- Returns   (partition, position, published_position, is_leased, age_s), a row per partition:
--           the age of the oldest event that is not published; null where all are.
SELECT p.partition, p.position, p.published_position,
       coalesce(p.leased_until > now(), false) AS is_leased,
       extract(epoch FROM now() - oldest.recorded_at)::double precision AS age_s
  FROM partitions p
  LEFT JOIN events oldest
    ON oldest.partition = p.partition
   AND oldest.position = p.published_position + 1
