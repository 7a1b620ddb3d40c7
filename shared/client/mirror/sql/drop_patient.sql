-- drop_patient
-- Forget all that a patient has granted.
--
--   ?1  patient_id
DELETE FROM consents WHERE patient_id = ?1
