-- move_partition
-- Note how far a partition is taken.
--
--   ?1  the new position
--   ?2  the id of the event there
--   ?3  its generation
--   ?4  the partition
--   ?5  the position before
--
-- Conflict  no row: somebody else has moved it.
UPDATE partitions
   SET position = ?1, event_id = ?2, generation = ?3
 WHERE number = ?4 AND position = ?5
