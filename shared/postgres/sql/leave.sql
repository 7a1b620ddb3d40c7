-- leave
-- Give this worker's share to the others at once. Its presence stays known until it is gone, so
-- that nothing has to run out should it die before it has handed everything over.
--
--   $1  owner  text
UPDATE workers SET alive_until = now() WHERE owner = $1::text
