-- keep_leases
-- Say that this worker lives and stays, renew the leases that it still holds, and free those of
-- workers that are gone: whoever can take a worker's presence knows that it has let go of it.
-- The rows are locked in the order of the partitions, as every statement does that locks several.
--
--   $1  owner     text
--   $2  seconds   double precision   how long leases and this sign of life are valid
--   $3  stays     boolean            false while it leaves: then it has no share any more
--   $4  presence  bigint             the advisory lock that its connection holds
--
-- Returns   (partition, epoch) of every partition still owned.
-- Lost      a partition that another worker took is not among them.
WITH alive AS (
    INSERT INTO workers (owner, alive_until, presence)
    SELECT $1::text, now() + make_interval(secs => $2::double precision), $4::bigint
     WHERE $3::boolean
    ON CONFLICT (owner)
    DO UPDATE SET alive_until = EXCLUDED.alive_until, presence = EXCLUDED.presence
), gone AS (
    SELECT owner
      FROM workers
     WHERE owner <> $1::text
       AND (alive_until < now() - interval '1 minute'
            OR pg_try_advisory_xact_lock_shared(presence))
       FOR UPDATE SKIP LOCKED
), buried AS (
    DELETE FROM workers WHERE owner = ANY (ARRAY(SELECT owner FROM gone))
), locked AS (
    -- An array is read once: a row that another statement changed meanwhile is looked at again,
    -- and what `gone` finds must be the same then.
    SELECT partition
      FROM partitions
     WHERE owner = $1::text OR owner = ANY (ARRAY(SELECT owner FROM gone))
     ORDER BY partition
       FOR NO KEY UPDATE
), kept AS (
    UPDATE partitions p
       SET owner = CASE WHEN p.owner = $1::text THEN p.owner END,
           leased_until = CASE WHEN p.owner = $1::text
                               THEN now() + make_interval(secs => $2::double precision) END
      FROM locked
     WHERE p.partition = locked.partition
    RETURNING p.partition, p.epoch, p.owner
)
SELECT partition, epoch FROM kept WHERE owner IS NOT NULL
