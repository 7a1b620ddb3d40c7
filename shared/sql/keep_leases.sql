-- keep_leases
-- Say that this worker lives and stays, and renew the leases that it still holds.
--
--   $1  owner    text
--   $2  seconds  double precision   how long leases and this sign of life are valid
--   $3  stays    boolean            false while it leaves: then it has no share any more
--
-- Returns   (partition, epoch) of every partition still owned.
-- Lost      a partition that another worker took is not among them.
WITH alive AS (
    INSERT INTO workers (owner, alive_until)
    SELECT $1::text, now() + make_interval(secs => $2::double precision)
     WHERE $3::boolean
    ON CONFLICT (owner) DO UPDATE SET alive_until = EXCLUDED.alive_until
), buried AS (
    DELETE FROM workers WHERE alive_until < now() - interval '1 minute'
)
UPDATE partitions
   SET leased_until = now() + make_interval(secs => $2::double precision)
 WHERE owner = $1::text
RETURNING partition, epoch
