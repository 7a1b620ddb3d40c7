-- read_live_log
-- Which log the read model follows, asked from where the shadow comes first.
--
-- Returns   one row: log_id; none where it does not know yet.
SELECT log_id FROM public.followed_log
