-- read_streams
-- The histories of some patients: each from its snapshot, where it has one, else from the start.
-- The event that a snapshot ends with comes too: without it the snapshot is of another log.
--
--   $1  stream_ids  text[]    each once
--   $2  format      smallint  of the snapshots that can be read; 0 for none
--
-- Returns   (stream_id, stream_version, type, schema_version, data, digest), in the order of each
--           stream. The first row may be its snapshot: without a type, the state as its data.
SELECT s.stream_id, s.stream_version, NULL AS type, s.format AS schema_version, s.state AS data,
       s.digest
  FROM snapshots s
 WHERE s.stream_id = ANY ($1::text[])
   AND s.format = $2::smallint
UNION ALL
SELECT e.stream_id, e.stream_version, e.type, e.schema_version, e.data::text, NULL
  FROM unnest($1::text[]) AS wanted (stream_id)
  JOIN events e
    ON e.stream_id = wanted.stream_id
   AND e.stream_version >= coalesce(
           (SELECT s.stream_version
              FROM snapshots s
             WHERE s.stream_id = wanted.stream_id
               AND s.format = $2::smallint), 1)
 ORDER BY stream_id, stream_version, type NULLS FIRST
