-- count_receipts
-- How many receipts are older than so long.
--
--   $1  age  interval
--
-- Returns   one row: (before, count): the moment so long ago, by the database's clock.
SELECT horizon.before,
       (SELECT count(*) FROM command_receipts WHERE recorded_at < horizon.before) AS count
  FROM (SELECT now() - $1::interval AS before) AS horizon
