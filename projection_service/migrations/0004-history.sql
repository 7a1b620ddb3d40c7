-- When each consent was in force and when it was asked for, and how far back that is known
-- depends: 0003-parked-events

-- migrate: apply

CREATE TABLE consent_history (
    patient_id    text COLLATE "C" NOT NULL,
    entity_name   text COLLATE "C" NOT NULL,
    entity_id     text COLLATE "C" NOT NULL,
    record_type   text COLLATE "C" NOT NULL,
    kind          text COLLATE "C" NOT NULL,
    began_version bigint      NOT NULL,
    began_at      timestamptz NOT NULL,
    began_command uuid        NOT NULL,
    began_issuer  text,
    ended_version bigint,
    ended_at      timestamptz,
    ended_command uuid,
    ended_issuer  text,
    CONSTRAINT consent_history_place_key
        PRIMARY KEY (patient_id, entity_name, entity_id, record_type, kind, began_version),
    CONSTRAINT consent_history_kind_known CHECK (kind IN ('period', 'request'))
);

CREATE INDEX consent_history_open_idx
    ON consent_history (patient_id, entity_name, entity_id, record_type, kind)
 WHERE ended_version IS NULL;

-- At most one row; without it, everything is known.
CREATE TABLE history_horizon (
    known_since timestamptz NOT NULL,
    one         boolean     NOT NULL DEFAULT true,
    CONSTRAINT history_horizon_one_key PRIMARY KEY (one),
    CONSTRAINT history_horizon_one_row CHECK (one)
);

-- What was projected before this table was there is not in it: nothing is known until a rebuild.
INSERT INTO history_horizon (known_since)
SELECT 'infinity' WHERE EXISTS (SELECT FROM checkpoints WHERE position > 0);

-- migrate: rollback

DROP TABLE history_horizon;
DROP TABLE consent_history;
