-- leave
-- Take this worker off the list, so that its share goes to the others at once.
--
--   $1  owner  text
DELETE FROM workers WHERE owner = $1::text
