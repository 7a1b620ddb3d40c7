-- By which event each period of consent began, and whose records somebody may see
-- depends: 0009-consents-that-end

-- migrate: apply

-- Null for what was projected before, until a rebuild.
ALTER TABLE consent_history ADD COLUMN began_event uuid;

-- Of its columns none ever changes, so that a change of permissions stays within its page.
CREATE INDEX patient_consent_patients_idx
    ON patient_consent (entity_name COLLATE "C", entity_id COLLATE "C", patient_id COLLATE "C");

-- migrate: rollback

DROP INDEX patient_consent_patients_idx;
ALTER TABLE consent_history DROP COLUMN began_event;
