-- had_consent
-- What was in force for some grantees at some moments, with the patients' versions of today:
-- of each record type the last period that had begun, unless it had ended. A moment to come is
-- asked about as things stand.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]
--   $3  entity_ids    text[]
--   $4  ats           timestamptz[]
--   $5  record_types  text[]         all that there are
--
-- Returns   (version, permissions, ends, known_since), a row per question and in their order;
--           ends: of each permission, as it stood at that moment, null where it had none;
--           known_since: null where everything is known.
SELECT coalesce(p.version, 0) AS version, horizon.known_since, held.permissions, held.ends
  FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, at, number)
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
  LEFT JOIN history_horizon horizon ON horizon.one
 CROSS JOIN LATERAL (
       SELECT coalesce(array_agg(type.name), '{}') AS permissions,
              coalesce(array_agg(last.expires_at), '{}') AS ends
         FROM unnest($5::text[]) AS type (name)
        CROSS JOIN LATERAL (
              SELECT h.ended_at, h.expires_at
                FROM consent_history h
               WHERE h.patient_id = asked.patient_id
                 AND h.entity_name = asked.entity_name
                 AND h.entity_id = asked.entity_id
                 AND h.record_type = type.name
                 AND h.kind = 'period'
                 AND h.began_at <= asked.at
               ORDER BY h.began_version DESC
               LIMIT 1) AS last
        WHERE (asked.at < least(last.ended_at, last.expires_at)) IS NOT FALSE) AS held
 ORDER BY asked.number
