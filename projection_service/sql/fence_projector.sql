-- fence_projector
-- Make whoever projects a partition begin anew, because its parked events change beside it.
-- The row is locked to the commit, and waited for while a batch is being projected: FOR UPDATE, since
-- a batch lets others change it that leave the epoch as it is.
--
--   $1  partition  integer
--
-- Returns   one row: the new epoch, to write under.
WITH locked AS (
    SELECT partition FROM partitions WHERE partition = $1::integer FOR UPDATE
)
UPDATE partitions p
   SET epoch = p.epoch + 1
  FROM locked
 WHERE p.partition = locked.partition
RETURNING p.epoch
