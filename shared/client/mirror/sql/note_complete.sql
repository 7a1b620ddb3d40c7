-- note_complete
-- Note when all that a partition's log had was known here.
--
--   ?1, ?2, ?3  the run of this host, and the moment by both clocks
--   ?4          the partition
--   ?5          the position up to which it was known
--
-- Conflict  no row: somebody else has moved it, or nothing is as it was.
UPDATE partitions
   SET complete_boot = ?1, complete_clock = ?2, complete_wall = ?3
 WHERE number = ?4 AND position >= ?5
