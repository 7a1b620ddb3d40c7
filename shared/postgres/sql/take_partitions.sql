-- take_partitions
-- Take partitions that nobody owns, or whose owner let the lease run out.
-- The epoch grows, so that whatever the last owner still tries is refused.
--
--   $1  owner    text
--   $2  seconds  double precision   how long the lease is valid
--   $3  most     bigint             how many to take at most
--
-- Returns   (partition, epoch) of each one taken.
UPDATE partitions
   SET owner = $1::text,
       epoch = epoch + 1,
       leased_until = now() + make_interval(secs => $2::double precision)
 WHERE partition IN (
        SELECT partition FROM partitions
         WHERE owner IS NULL OR leased_until < now()
         ORDER BY partition
         LIMIT $3::bigint
           FOR UPDATE SKIP LOCKED)
RETURNING partition, epoch
