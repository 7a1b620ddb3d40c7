-- read_head
-- How far the log of a partition goes, and how far it is published.
--
--   $1  partition  integer
--
-- Returns   one row: (position, published_position).
SELECT position, published_position FROM partitions WHERE partition = $1::integer
