-- When what is granted or asked for ends by itself, and how each period and request ended
-- depends: 0005-discarded-events

-- migrate: apply

-- By record type, {"exams": "2027-01-01T00:00:00.000000Z"}; null where nothing has an end.
ALTER TABLE patient_consent ADD COLUMN ends jsonb, ADD COLUMN requested_ends jsonb;

-- The end that the grant gave or the request asks for, and how the period or request ended:
-- null where it was revoked, or answered by a grant, which once was the only way.
ALTER TABLE consent_history
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN ended_cause text COLLATE "C",
    ADD CONSTRAINT consent_history_cause_known
        CHECK (ended_cause IN ('expired', 'extended', 'denied', 'withdrawn')) NOT VALID;

-- migrate: rollback

ALTER TABLE consent_history
    DROP CONSTRAINT consent_history_cause_known, DROP COLUMN ended_cause, DROP COLUMN expires_at;
ALTER TABLE patient_consent DROP COLUMN requested_ends, DROP COLUMN ends;
