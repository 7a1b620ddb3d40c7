-- Events that an operator gave up, so that a rebuild gives them up too
-- depends: 0004-history

-- migrate: apply

CREATE TABLE discarded_events (
    partition    integer     NOT NULL,
    position     bigint      NOT NULL,
    discarded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT discarded_events_position_key PRIMARY KEY (partition, position)
);

-- migrate: rollback

DROP TABLE discarded_events;
