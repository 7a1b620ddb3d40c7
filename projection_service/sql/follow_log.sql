-- follow_log
-- Remember which log the read model follows, the first time.
--
--   $1  log_id  uuid
--
-- Returns   one row: the log_id that it follows; none where another worker is just remembering one.
WITH kept AS (
    INSERT INTO followed_log (log_id) VALUES ($1::uuid) ON CONFLICT DO NOTHING
    RETURNING log_id
)
SELECT log_id FROM followed_log UNION ALL SELECT log_id FROM kept
