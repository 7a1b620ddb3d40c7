-- purge_shadow
-- Forget in the shadow what was purged of the read model's history, however much of it the log has.
-- Where the read model knows nothing of its past, for it is older than the history, all is kept.
WITH purged AS (
    SELECT known_since AS until FROM public.history_horizon WHERE known_since < 'infinity'
), removed AS (
    DELETE FROM consent_shadow.consent_history h USING purged WHERE h.ended_at <= purged.until
)
INSERT INTO consent_shadow.history_horizon (known_since) SELECT until FROM purged
ON CONFLICT (one) DO UPDATE SET known_since = EXCLUDED.known_since
