-- Whose records somebody may see; the projection goes on while the index is made
-- depends: 0010-checks
-- transaction: false

-- migrate: apply

-- Of its columns none ever changes, so that a change of permissions stays within its page.
DROP INDEX CONCURRENTLY IF EXISTS patient_consent_patients_idx;
CREATE INDEX CONCURRENTLY patient_consent_patients_idx
    ON patient_consent (entity_name COLLATE "C", entity_id COLLATE "C", patient_id COLLATE "C");

-- migrate: rollback

DROP INDEX patient_consent_patients_idx;
