-- Which log this is, which virtual host works on it, and where its generations begin
-- depends: 0006-receipts-by-time

-- migrate: apply

CREATE TABLE log_identity (
    log_id       uuid    NOT NULL DEFAULT gen_random_uuid(),
    virtual_host uuid,
    one          boolean NOT NULL DEFAULT true,
    CONSTRAINT log_identity_one_key PRIMARY KEY (one),
    CONSTRAINT log_identity_one_row CHECK (one)
);

INSERT INTO log_identity DEFAULT VALUES;

-- Without a row, a partition is in its first generation.
CREATE TABLE generations (
    partition      integer     NOT NULL,
    generation     bigint      NOT NULL,
    after_position bigint      NOT NULL,
    began_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT generations_generation_key PRIMARY KEY (partition, generation)
);

-- migrate: rollback

DROP TABLE generations;
DROP TABLE log_identity;
