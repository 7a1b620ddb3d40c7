-- had_consent
-- What was in force for some grantees at some moments, with the patients' versions of today:
-- of each record type the last period that had begun, unless it had ended.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]
--   $3  entity_ids    text[]
--   $4  ats           timestamptz[]
--   $5  record_types  text[]         all that there are
--
-- Returns   (version, permissions, known_since), a row per question and in their order;
--           known_since: null where everything is known.
SELECT coalesce(p.version, 0) AS version, horizon.known_since,
       ARRAY(
           SELECT type.name
             FROM unnest($5::text[]) AS type (name)
            CROSS JOIN LATERAL (
                SELECT h.ended_at
                  FROM consent_history h
                 WHERE h.patient_id = asked.patient_id
                   AND h.entity_name = asked.entity_name
                   AND h.entity_id = asked.entity_id
                   AND h.record_type = type.name
                   AND h.kind = 'period'
                   AND h.began_at <= asked.at
                 ORDER BY h.began_version DESC
                 LIMIT 1) AS last
            WHERE last.ended_at IS NULL OR asked.at < last.ended_at
       ) AS permissions
  FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, at, number)
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
  LEFT JOIN history_horizon horizon ON horizon.one
 ORDER BY asked.number
