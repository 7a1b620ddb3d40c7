-- read_ends
-- What somebody may see of a patient, and until when.
--
--   ?1  patient_id
--   ?2  entity_name
--   ?3  entity_id
--
-- Returns   the end for each record type, in the vocabulary's order; no row: nothing is granted.
SELECT exams, consultations, conditions, er_visits
  FROM consents
 WHERE patient_id = ?1 AND entity_name = ?2 AND entity_id = ?3
