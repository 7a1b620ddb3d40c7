-- create_consents
-- Who may see what of whom, and until when: microseconds since 1970; null where it is not granted.
CREATE TABLE consents (
    patient_id    TEXT NOT NULL,
    entity_name   TEXT NOT NULL,
    entity_id     TEXT NOT NULL,
    exams         INTEGER,
    consultations INTEGER,
    conditions    INTEGER,
    er_visits     INTEGER,
    PRIMARY KEY (patient_id, entity_name, entity_id)
) WITHOUT ROWID
