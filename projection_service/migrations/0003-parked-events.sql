-- Events that could not be applied, and their patient's later ones
-- depends: 0002-read-model

-- migrate: apply

CREATE TABLE parked_events (
    partition  integer     NOT NULL,
    position   bigint      NOT NULL,
    patient_id text        NOT NULL,
    event      json        NOT NULL,
    reason     text        NOT NULL,
    parked_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT parked_events_position_key PRIMARY KEY (partition, position)
);

CREATE INDEX parked_events_patient_idx ON parked_events (patient_id, position);

-- migrate: rollback

DROP TABLE parked_events;
