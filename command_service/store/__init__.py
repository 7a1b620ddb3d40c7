"""The log and what stands beside it: events, receipts, snapshots, and a cache of states."""
