-- open_checkpoint
-- Where the projection of a partition stands; its checkpoint begins at 0.
--
--   $1  partition  integer
--
-- Returns   one row: position.
INSERT INTO checkpoints (partition) VALUES ($1::integer)
ON CONFLICT (partition) DO UPDATE SET position = checkpoints.position
RETURNING position
