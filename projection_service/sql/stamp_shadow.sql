-- stamp_shadow
-- Say which rebuild fills the shadow: the statements of any other one change nothing then.
--
--   $1  epoch  bigint
UPDATE consent_shadow.partitions SET epoch = $1::bigint
