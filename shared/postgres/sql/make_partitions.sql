-- make_partitions
-- Fix the number of partitions, the first time; nothing happens when there are some already.
--
--   $1  count  integer
INSERT INTO partitions (partition)
SELECT generate_series(0, $1::integer - 1)
 WHERE NOT EXISTS (SELECT FROM partitions)
