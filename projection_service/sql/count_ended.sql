-- count_ended
-- How much of the history had ended by a moment.
--
--   $1  until  timestamptz
--
-- Returns   one row: (periods, requests).
SELECT count(*) FILTER (WHERE kind = 'period') AS periods,
       count(*) FILTER (WHERE kind = 'request') AS requests
  FROM consent_history
 WHERE ended_at <= $1::timestamptz OR (kind = 'period' AND expires_at <= $1::timestamptz)
