-- release_partitions
-- Give partitions up, so that another worker may take them at once.
--
--   $1  owner       text
--   $2  partitions  integer[]
UPDATE partitions
   SET owner = NULL, leased_until = NULL
 WHERE owner = $1::text AND partition = ANY ($2::integer[])
