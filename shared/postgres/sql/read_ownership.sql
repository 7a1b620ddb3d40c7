-- read_ownership
-- Who works on which partition.
--
-- Returns   (partition, owner, epoch, is_leased), a row per partition, in their order.
SELECT partition, owner, epoch, coalesce(leased_until > now(), false) AS is_leased
  FROM partitions
 ORDER BY partition
