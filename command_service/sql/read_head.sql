-- read_head
-- How far the log of a partition goes, how far it is published, and where its generations begin.
--
--   $1  partition  integer
--
-- Returns   one row: (position, published_position, log_id, generations, after_positions): the
--           generations but the first, in their order.
SELECT p.position, p.published_position, (SELECT log_id FROM log_identity) AS log_id,
       ARRAY(SELECT generation FROM generations g
              WHERE g.partition = p.partition ORDER BY generation) AS generations,
       ARRAY(SELECT after_position FROM generations g
              WHERE g.partition = p.partition ORDER BY generation) AS after_positions
  FROM partitions p
 WHERE p.partition = $1::integer
