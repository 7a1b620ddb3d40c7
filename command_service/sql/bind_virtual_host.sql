-- bind_virtual_host
-- Have one virtual host work on this log, and no other any more.
--
--   $1  virtual_host  uuid
UPDATE log_identity SET virtual_host = $1::uuid
