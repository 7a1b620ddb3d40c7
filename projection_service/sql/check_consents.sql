-- check_consents
-- By which consents some actors may see what is asked about now, with the patients' versions.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]
--   $3  entity_ids    text[]
--   $4  permissions   text[]   what each is asked about: a record type, or 'all'
--
-- Returns   (number, version, record_type, event_id, command_id, since): a row for each record
--           type that is granted, number counting the actors asked about from 1; one row without
--           a record type where none is. Without a command where it is not known how it began.
SELECT asked.number::integer AS number, coalesce(p.version, 0) AS version, granted.record_type,
       period.began_event AS event_id, period.began_command AS command_id, period.began_at AS since
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, permission, number)
  LEFT JOIN patient_consent c
    ON c.patient_id = asked.patient_id
   AND c.entity_name = asked.entity_name
   AND c.entity_id = asked.entity_id
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
  LEFT JOIN LATERAL unnest(c.permissions) AS granted (record_type)
    ON asked.permission IN ('all', granted.record_type)
  LEFT JOIN LATERAL (
       SELECT h.began_event, h.began_command, h.began_at
         FROM consent_history h
        WHERE h.patient_id = asked.patient_id
          AND h.entity_name = asked.entity_name
          AND h.entity_id = asked.entity_id
          AND h.record_type = granted.record_type
          AND h.kind = 'period'
        ORDER BY h.began_version DESC
        LIMIT 1) AS period ON true
