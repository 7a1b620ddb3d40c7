-- remove_unreadable
-- Say something of a patient again.
--
--   ?1  patient_id
DELETE FROM unreadable WHERE patient_id = ?1
