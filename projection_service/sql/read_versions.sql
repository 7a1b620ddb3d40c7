-- read_versions
-- How far some patients are projected.
--
--   $1  patient_ids  text[]   each once
--
-- Returns   (patient_id, version) of those of whom something is projected.
SELECT patient_id, version
  FROM patients
 WHERE patient_id = ANY ($1::text[])
