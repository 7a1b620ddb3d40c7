-- note_attempt
-- Remember that a suspicious message is about to be handled, alone.
--
--   $1  digest  bytea   of the message
--
-- Returns   one row: attempts, how often it was begun and never finished, this time included.
INSERT INTO suspects (digest, attempts) VALUES ($1::bytea, 1)
ON CONFLICT (digest) DO UPDATE SET attempts = suspects.attempts + 1
RETURNING attempts
