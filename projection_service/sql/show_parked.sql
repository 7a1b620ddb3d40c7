-- show_parked
-- A patient's parked events, in order.
--
--   $1  patient_id  text
--
-- Returns   (partition, position, event, reason, parked_at).
SELECT partition, position, event, reason, parked_at
  FROM parked_events
 WHERE patient_id = $1::text
 ORDER BY position
