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
--
-- To look up a row among millions costs more than all else. So where one record type is asked
-- about, its last period says whether it is granted, as the consent would: the same statement
-- writes both. What has no period is granted only if it was before there was a history, and that is
-- looked up only where not all of the history is known.
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
)
SELECT asked.number::integer AS number, coalesce(p.version, 0) AS version, granted.record_type,
       granted.began_event AS event_id, granted.began_command AS command_id,
       granted.began_at AS since, granted.until
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, permission, number)
 CROSS JOIN clock
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
  LEFT JOIN LATERAL (
       SELECT h.began_event, h.began_command, h.began_at, h.expires_at,
              h.ended_version IS NULL AS is_open
         FROM consent_history h
        WHERE asked.permission <> 'all'
          AND h.patient_id = asked.patient_id
          AND h.entity_name = asked.entity_name
          AND h.entity_id = asked.entity_id
          AND h.record_type = asked.permission
          AND h.kind = 'period'
        ORDER BY h.began_version DESC
        LIMIT 1) AS last ON true
  LEFT JOIN LATERAL (
       SELECT asked.permission AS record_type, last.began_event, last.began_command,
              last.began_at, last.expires_at AS until
        WHERE last.is_open
       UNION ALL
       SELECT type.name, period.began_event, period.began_command, period.began_at,
              (c.ends ->> type.name)::timestamptz
         FROM patient_consent c
        CROSS JOIN unnest(c.permissions) AS type (name)
         LEFT JOIN LATERAL (
              SELECT h.began_event, h.began_command, h.began_at
                FROM consent_history h
               WHERE h.patient_id = asked.patient_id
                 AND h.entity_name = asked.entity_name
                 AND h.entity_id = asked.entity_id
                 AND h.record_type = type.name
                 AND h.kind = 'period'
               ORDER BY h.began_version DESC
               LIMIT 1) AS period ON true
        WHERE (asked.permission = 'all'
               OR (last.is_open IS NULL AND EXISTS (SELECT FROM history_horizon)))
          AND c.patient_id = asked.patient_id
          AND c.entity_name = asked.entity_name
          AND c.entity_id = asked.entity_id
          AND asked.permission IN ('all', type.name)) AS granted
    ON (clock.now < granted.until) IS NOT FALSE
