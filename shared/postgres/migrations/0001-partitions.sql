-- Who works on which partition
-- depends:

-- migrate: apply

CREATE TABLE partitions (
    partition    integer     PRIMARY KEY,
    owner        text,
    epoch        bigint      NOT NULL DEFAULT 0,
    leased_until timestamptz
) WITH (fillfactor = 50);

CREATE TABLE workers (
    owner       text        PRIMARY KEY,
    alive_until timestamptz NOT NULL
);

-- migrate: rollback

DROP TABLE workers;
DROP TABLE partitions;
