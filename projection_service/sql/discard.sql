-- discard
-- Give up a parked event, and remember that it was given up.
--
--   $1  patient_id  text
--   $2  position    bigint
--
-- Returns   its position; no row where no such event is parked.
WITH gone AS (
    DELETE FROM parked_events
     WHERE patient_id = $1::text AND position = $2::bigint
    RETURNING partition, position, event->>'id' AS event_id
), kept AS (
    INSERT INTO discarded_events (partition, position, event_id)
    SELECT partition, position, event_id FROM gone
    ON CONFLICT DO NOTHING
)
SELECT position FROM gone
