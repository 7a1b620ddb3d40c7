-- checked_consents
-- By which consents some actors could see what is asked about at some moments, with the patients'
-- versions of today: of each record type the last period that had begun, unless it had ended. A
-- moment to come is asked about as things stand.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]
--   $3  entity_ids    text[]
--   $4  permissions   text[]         what each is asked about: a record type, or 'all'
--   $5  ats           timestamptz[]
--   $6  record_types  text[]         all that there are
--
-- Returns   (number, version, record_type, event_id, command_id, since, until, known_since): a row
--           for each record type that was granted, number counting the actors asked about from 1;
--           one row without a record type where none was. Until: as it stood then, null where it had
--           no end; known_since: null where everything is known.
SELECT asked.number::integer AS number, coalesce(p.version, 0) AS version, granted.record_type,
       granted.began_event AS event_id, granted.began_command AS command_id,
       granted.began_at AS since, granted.expires_at AS until, horizon.known_since
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, permission, at, number)
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
  LEFT JOIN history_horizon horizon ON horizon.one
  LEFT JOIN LATERAL (
       SELECT type.name AS record_type, last.began_event, last.began_command, last.began_at,
              last.expires_at
         FROM unnest($6::text[]) AS type (name)
        CROSS JOIN LATERAL (
              SELECT h.began_event, h.began_command, h.began_at, h.ended_at, h.expires_at
                FROM consent_history h
               WHERE h.patient_id = asked.patient_id
                 AND h.entity_name = asked.entity_name
                 AND h.entity_id = asked.entity_id
                 AND h.record_type = type.name
                 AND h.kind = 'period'
                 AND h.began_at <= asked.at
               ORDER BY h.began_version DESC
               LIMIT 1) AS last
        WHERE asked.permission IN ('all', type.name)
          AND (asked.at < least(last.ended_at, last.expires_at)) IS NOT FALSE) AS granted ON true
