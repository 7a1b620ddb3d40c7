-- raise_horizon
-- Say that what ended up to a moment is not known any more; what was said of later stays.
--
--   $1  known_since  timestamptz
INSERT INTO history_horizon (known_since) VALUES ($1::timestamptz)
ON CONFLICT (one)
DO UPDATE SET known_since = greatest(history_horizon.known_since, EXCLUDED.known_since)
