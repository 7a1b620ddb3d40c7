-- Receipts can be found by their age; adding to them goes on while the index is made
-- depends: 0005-snapshots
-- transaction: false

-- migrate: apply

DROP INDEX CONCURRENTLY IF EXISTS command_receipts_recorded_at_idx;
CREATE INDEX CONCURRENTLY command_receipts_recorded_at_idx ON command_receipts (recorded_at);

-- migrate: rollback

DROP INDEX command_receipts_recorded_at_idx;
