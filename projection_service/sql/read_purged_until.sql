-- read_purged_until
-- Up to when the read model's history was purged of what had ended.
-- Where it knows nothing of its past, for it is older than the history, nothing was purged.
--
-- Returns   one row: known_since; none where nothing was purged.
SELECT known_since FROM public.history_horizon WHERE known_since < 'infinity'
