-- Which log the read model follows, the last event of each checkpoint, and whether the log has it
-- depends: 0005-discarded-events

-- migrate: apply

CREATE TABLE followed_log (
    log_id uuid    NOT NULL,
    one    boolean NOT NULL DEFAULT true,
    CONSTRAINT followed_log_one_key PRIMARY KEY (one),
    CONSTRAINT followed_log_one_row CHECK (one)
);

-- Of a checkpoint of before, the event is not known until the next one is projected.
ALTER TABLE checkpoints
    ADD COLUMN event_id       text,
    ADD COLUMN generation     bigint,
    ADD COLUMN set_back_since timestamptz;

ALTER TABLE discarded_events ADD COLUMN event_id text;

-- migrate: rollback

ALTER TABLE discarded_events DROP COLUMN event_id;
ALTER TABLE checkpoints
    DROP COLUMN event_id,
    DROP COLUMN generation,
    DROP COLUMN set_back_since;
DROP TABLE followed_log;
