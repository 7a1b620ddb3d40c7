-- mark_set_back
-- Say whether the log lacks what a partition's checkpoint stands on: until that is over, or the
-- read model is built anew, its patients get no answers.
--
--   $1  partition    integer
--   $2  epoch        bigint    the epoch under which this worker took it
--   $3  is_set_back  boolean
UPDATE checkpoints c
   SET set_back_since = CASE WHEN $3::boolean THEN coalesce(c.set_back_since, now()) END
  FROM partitions p
 WHERE c.partition = $1::integer
   AND p.partition = c.partition
   AND p.epoch = $2::bigint
   AND (c.set_back_since IS NOT NULL) <> $3::boolean
