-- drop_ends
-- Forget somebody who may see nothing of a patient any more.
--
--   ?1  patient_id
--   ?2  entity_name
--   ?3  entity_id
DELETE FROM consents WHERE patient_id = ?1 AND entity_name = ?2 AND entity_id = ?3
