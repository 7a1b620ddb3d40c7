-- The log, and the receipts of what was decided
-- depends: 0001-partitions

-- migrate: apply

ALTER TABLE partitions
    ADD COLUMN position           bigint      NOT NULL DEFAULT 0,
    ADD COLUMN published_position bigint      NOT NULL DEFAULT 0,
    ADD COLUMN recorded_at        timestamptz NOT NULL DEFAULT '-infinity';

CREATE TABLE events (
    partition      integer     NOT NULL,
    position       bigint      NOT NULL,
    stream_id      text        NOT NULL,
    stream_version bigint      NOT NULL,
    event_id       uuid        NOT NULL,
    type           text        NOT NULL,
    schema_version smallint    NOT NULL,
    data           json        NOT NULL,
    recorded_at    timestamptz NOT NULL,
    correlation_id text        NOT NULL,
    causation_id   uuid        NOT NULL,
    issued_by      text,
    traceparent    text,
    tracestate     text,
    CONSTRAINT events_position_key PRIMARY KEY (partition, position),
    CONSTRAINT events_stream_version_key UNIQUE (stream_id, stream_version)
);

CREATE TABLE command_receipts (
    command_id     uuid        NOT NULL,
    fingerprint    bytea       NOT NULL,
    patient_id     text        NOT NULL,
    partition      integer     NOT NULL,
    stream_version bigint      NOT NULL,
    first_position bigint,
    event_count    integer     NOT NULL,
    error          text,
    message        text,
    recorded_at    timestamptz NOT NULL,
    CONSTRAINT command_receipts_command_id_key PRIMARY KEY (command_id)
);

-- migrate: rollback

DROP TABLE command_receipts;
DROP TABLE events;
ALTER TABLE partitions
    DROP COLUMN position,
    DROP COLUMN published_position,
    DROP COLUMN recorded_at;
