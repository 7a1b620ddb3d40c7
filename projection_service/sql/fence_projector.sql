-- fence_projector
-- Make whoever projects a partition begin anew, because its parked events change beside it.
-- The row is locked to the commit, and waited for while a batch is being projected.
--
--   $1  partition  integer
--
-- Returns   one row: the new epoch, to write under.
UPDATE partitions SET epoch = epoch + 1 WHERE partition = $1::integer RETURNING epoch
