-- purge_history
-- Remove what had ended by a moment from the next rows of the history, in the order of its key.
-- No projector waits for this: it never changes what has ended, but to note that it did.
--
--   $1  until          timestamptz
--   $2  patient_id     text     the key of the last row looked at before; '' and 0 to begin
--   $3  entity_name    text
--   $4  entity_id      text
--   $5  record_type    text
--   $6  kind           text
--   $7  began_version  bigint
--   $8  rows           integer  how many to look at
--
-- Returns   one row: (periods, requests) removed, and the key of the last row looked at;
--           none where nothing was left to look at.
WITH looked_at AS (
    SELECT patient_id, entity_name, entity_id, record_type, kind, began_version
      FROM consent_history
     WHERE (patient_id, entity_name, entity_id, record_type, kind, began_version)
         > ($2::text, $3::text, $4::text, $5::text, $6::text, $7::bigint)
     ORDER BY patient_id, entity_name, entity_id, record_type, kind, began_version
     LIMIT $8::integer
), removed AS (
    DELETE FROM consent_history h
     USING looked_at l
     WHERE (h.patient_id, h.entity_name, h.entity_id, h.record_type, h.kind, h.began_version)
         = (l.patient_id, l.entity_name, l.entity_id, l.record_type, l.kind, l.began_version)
       AND (h.ended_at <= $1::timestamptz
            OR (h.kind = 'period' AND h.expires_at <= $1::timestamptz))
    RETURNING h.kind
)
SELECT (SELECT count(*) FROM removed WHERE removed.kind = 'period') AS periods,
       (SELECT count(*) FROM removed WHERE removed.kind = 'request') AS requests,
       l.patient_id, l.entity_name, l.entity_id, l.record_type, l.kind, l.began_version
  FROM looked_at l
 ORDER BY l.patient_id DESC, l.entity_name DESC, l.entity_id DESC, l.record_type DESC,
          l.kind DESC, l.began_version DESC
 LIMIT 1
