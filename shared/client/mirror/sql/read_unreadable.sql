-- read_unreadable
-- Patients of whom nothing can be said.
SELECT patient_id FROM unreadable
