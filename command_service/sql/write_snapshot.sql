-- write_snapshot
-- Keep a patient's state beside the log, in place of the snapshot before.
-- What a snapshot says is true whoever owns the partition: the events up to it never change.
--
--   $1  stream_id       text
--   $2  stream_version  bigint    of the last event in it
--   $3  format          smallint
--   $4  state           text      JSON
--   $5  digest          bytea     of all that is above
INSERT INTO snapshots (stream_id, stream_version, format, state, digest)
VALUES ($1::text, $2::bigint, $3::smallint, $4::text, $5::bytea)
ON CONFLICT (stream_id) DO UPDATE
   SET stream_version = EXCLUDED.stream_version, format = EXCLUDED.format,
       state = EXCLUDED.state, digest = EXCLUDED.digest, taken_at = EXCLUDED.taken_at
