-- fair_share
-- How many partitions this worker should own, so that live workers differ by one at most.
--
--   $1  owner  text
--
-- Returns   one row: share.
WITH living AS (
    SELECT owner, row_number() OVER (ORDER BY owner) AS rank, count(*) OVER () AS workers
      FROM workers
     WHERE alive_until > now()
), work AS (
    SELECT count(*) AS partitions FROM partitions
)
SELECT partitions / workers + CASE WHEN rank <= partitions % workers THEN 1 ELSE 0 END AS share
  FROM living, work
 WHERE owner = $1::text
