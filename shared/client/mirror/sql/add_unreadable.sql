-- add_unreadable
-- Say nothing of a patient from here on.
--
--   ?1  patient_id
INSERT INTO unreadable VALUES (?1) ON CONFLICT DO NOTHING
