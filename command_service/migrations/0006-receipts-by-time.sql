-- Receipts can be found by their age; adding to them waits while the index is made
-- depends: 0005-snapshots

-- migrate: apply

CREATE INDEX command_receipts_recorded_at_idx ON command_receipts (recorded_at);

-- migrate: rollback

DROP INDEX command_receipts_recorded_at_idx;
