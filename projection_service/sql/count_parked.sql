-- count_parked
-- How much waits because it could not be applied.
--
-- Returns   one row: (events, patients).
SELECT count(*) AS events, count(DISTINCT patient_id) AS patients FROM parked_events
