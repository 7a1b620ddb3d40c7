-- unpark
-- Remove events that were applied after all.
--
--   $1  patient_id  text
--   $2  positions   bigint[]
--
-- Returns   the positions that were there.
DELETE FROM parked_events
 WHERE patient_id = $1::text AND position = ANY ($2::bigint[])
RETURNING position
