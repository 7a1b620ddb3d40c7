-- The states of patients with long histories; may be deleted at any time, without loss
-- depends: 0004-suspects

-- migrate: apply

CREATE TABLE snapshots (
    stream_id      text        NOT NULL,
    stream_version bigint      NOT NULL,
    format         smallint    NOT NULL,
    state          text        NOT NULL,
    digest         bytea       NOT NULL,
    taken_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT snapshots_stream_id_key PRIMARY KEY (stream_id)
);

-- migrate: rollback

DROP TABLE snapshots;
