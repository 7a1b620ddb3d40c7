-- count_partitions
-- How many partitions this deployment was made with; 0 before it was first migrated.
--
-- Returns   one row: count.
SELECT count(*) FROM partitions
