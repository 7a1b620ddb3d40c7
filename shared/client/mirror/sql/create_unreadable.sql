-- create_unreadable
-- Patients of whom something has happened that the writer could not read; nothing is said of them.
CREATE TABLE unreadable (
    patient_id TEXT PRIMARY KEY
) WITHOUT ROWID
