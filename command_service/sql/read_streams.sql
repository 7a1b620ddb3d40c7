-- read_streams
-- The whole history of some patients, as far as decisions need it.
--
--   $1  stream_ids  text[]
--
-- Returns   (stream_id, stream_version, type, schema_version, data), in the order of each stream.
SELECT stream_id, stream_version, type, schema_version, data
  FROM events
 WHERE stream_id = ANY ($1::text[])
 ORDER BY stream_id, stream_version
