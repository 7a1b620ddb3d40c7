-- purge_shadow
-- Forget in the shadow what was purged of the read model's history, however much the log has of it.
--
--   $1  until  timestamptz   null where nothing was purged
WITH removed AS (
    DELETE FROM consent_shadow.consent_history
     WHERE ended_at <= $1::timestamptz OR (kind = 'period' AND expires_at <= $1::timestamptz)
)
INSERT INTO consent_shadow.history_horizon (known_since)
SELECT $1::timestamptz WHERE $1::timestamptz IS NOT NULL
ON CONFLICT (one) DO UPDATE SET known_since = EXCLUDED.known_since
