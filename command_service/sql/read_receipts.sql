-- read_receipts
-- What was decided before for some command ids.
--
--   $1  command_ids  uuid[]
--
-- Returns   a row per receipt and event; without an event where the command was rejected.
SELECT r.command_id, r.fingerprint, r.patient_id, r.partition, r.stream_version AS version,
       r.error, r.message, r.details,
       e.event_id, e.type, e.schema_version, e.data, e.stream_version, e.position
  FROM command_receipts r
  LEFT JOIN events e
    ON e.partition = r.partition
   AND e.position >= r.first_position
   AND e.position < r.first_position + r.event_count
 WHERE r.command_id = ANY ($1::uuid[])
 ORDER BY r.command_id, e.position
