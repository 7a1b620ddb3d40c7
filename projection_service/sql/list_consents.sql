-- list_consents
-- Everything that is granted or asked for, of some patients, with their versions.
--
--   $1  patient_ids  text[]   each once
--
-- Returns   (patient_id, version, entity_name, entity_id, permissions, requested): a row per
--           consent; one row without a consent where a patient has none.
SELECT wanted.patient_id, coalesce(p.version, 0) AS version,
       c.entity_name, c.entity_id, c.permissions, c.requested
  FROM unnest($1::text[]) AS wanted (patient_id)
  LEFT JOIN patient_consent c ON c.patient_id = wanted.patient_id
  LEFT JOIN patients p ON p.patient_id = wanted.patient_id
 ORDER BY wanted.patient_id COLLATE "C", c.entity_name COLLATE "C", c.entity_id COLLATE "C"
