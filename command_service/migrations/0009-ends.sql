-- The ends of consents that are to be recorded when they come, and what a refusal's details were
-- depends: 0006-receipts-by-time

-- migrate: apply

CREATE TABLE ends (
    partition  integer     NOT NULL,
    expires_at timestamptz NOT NULL,
    stream_id  text        NOT NULL,
    CONSTRAINT ends_expires_at_key PRIMARY KEY (partition, expires_at, stream_id)
);

ALTER TABLE command_receipts ADD COLUMN details text;

-- migrate: rollback

ALTER TABLE command_receipts DROP COLUMN details;
DROP TABLE ends;
