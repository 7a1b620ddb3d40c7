-- open_checkpoint
-- Where the projection of a partition stands; its checkpoint begins at 0.
--
--   $1  partition  integer
--
-- Returns   one row: (position, event_id, generation, is_set_back); the event is null where it is
--           not known.
INSERT INTO checkpoints (partition) VALUES ($1::integer)
ON CONFLICT (partition) DO UPDATE SET position = checkpoints.position
RETURNING position, event_id, generation, set_back_since IS NOT NULL AS is_set_back
