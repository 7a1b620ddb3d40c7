-- read_parked
-- Which of these patients have a parked event.
--
--   $1  patient_ids  text[]
--
-- Returns   (patient_id, position): the first one parked of each.
SELECT patient_id, min(position) AS position
  FROM parked_events
 WHERE patient_id = ANY ($1::text[])
 GROUP BY patient_id
