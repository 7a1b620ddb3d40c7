-- write_trouble
-- Note why nothing new comes in, or that something does again.
--
--   ?1  reason    null: all is well
--   ?2  set_back
UPDATE trouble SET reason = ?1, set_back = ?2
