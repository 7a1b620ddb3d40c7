-- read_partitions
-- How far each partition is taken, and when all of it was known.
SELECT position, event_id, generation, complete_boot, complete_clock, complete_wall
  FROM partitions
 ORDER BY number
