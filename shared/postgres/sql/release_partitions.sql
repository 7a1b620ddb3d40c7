-- release_partitions
-- Give partitions up, so that another worker may take them at once.
--
--   $1  owner       text
--   $2  partitions  integer[]   null for all that it owns, whether it knows of them or not
WITH locked AS (
    SELECT partition
      FROM partitions
     WHERE owner = $1::text AND ($2::integer[] IS NULL OR partition = ANY ($2::integer[]))
     ORDER BY partition
       FOR NO KEY UPDATE
)
UPDATE partitions p
   SET owner = NULL, leased_until = NULL
  FROM locked
 WHERE p.partition = locked.partition
