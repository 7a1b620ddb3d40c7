-- clear_attempts
-- Forget a suspicious message: it was handled, or set aside.
--
--   $1  digest  bytea   of the message
DELETE FROM suspects WHERE digest = $1::bytea
