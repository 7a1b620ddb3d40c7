-- check_consents
-- By which consents some actors may see what is asked about now, with the patients' versions.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]
--   $3  entity_ids    text[]
--   $4  permissions   text[]   what each is asked about: a record type, or 'all'
--
-- Returns   (number, version, record_type, event_id, command_id, since, until): a row for each
--           record type that is granted and has not ended, number counting the actors asked about
--           from 1; one row without a record type where none is. Without a command where it is not
--           known how it began; until: null where it has no end.
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
)
SELECT asked.number::integer AS number, coalesce(p.version, 0) AS version, granted.record_type,
       period.began_event AS event_id, period.began_command AS command_id,
       period.began_at AS since, granted.until
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, permission, number)
 CROSS JOIN clock
  LEFT JOIN patient_consent c
    ON c.patient_id = asked.patient_id
   AND c.entity_name = asked.entity_name
   AND c.entity_id = asked.entity_id
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
  LEFT JOIN LATERAL (
       SELECT type.name AS record_type, (c.ends ->> type.name)::timestamptz AS until
         FROM unnest(c.permissions) AS type (name)) AS granted
    ON asked.permission IN ('all', granted.record_type)
   AND (clock.now < granted.until) IS NOT FALSE
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
