-- read_identity
-- Which log this is, which virtual host works on it, and whether somebody is at work just now.
--
-- Returns   one row: (log_id, virtual_host, is_at_work); virtual_host: null where none does yet.
SELECT log_id, virtual_host,
       EXISTS (SELECT FROM partitions WHERE leased_until > now()) AS is_at_work
  FROM log_identity
