-- Commands that may be what ends workers
-- depends: 0003-log-cannot-be-rewritten

-- migrate: apply

CREATE TABLE suspects (
    digest   bytea   NOT NULL,
    attempts integer NOT NULL,
    CONSTRAINT suspects_digest_key PRIMARY KEY (digest)
);

-- migrate: rollback

DROP TABLE suspects;
