-- write_ends
-- Note what somebody may see of a patient.
--
--   ?1  patient_id
--   ?2  entity_name
--   ?3  entity_id
--   ?4 to ?7  the end for each record type, in the vocabulary's order
INSERT INTO consents VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (patient_id, entity_name, entity_id) DO UPDATE
   SET exams = ?4, consultations = ?5, conditions = ?6, er_visits = ?7
