-- has_consent
-- What some grantees may see, with the patients' versions.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]
--   $3  entity_ids    text[]
--
-- Returns   (version, permissions), a row per question and in their order; no permissions: null.
SELECT coalesce(p.version, 0) AS version, c.permissions
  FROM unnest($1::text[], $2::text[], $3::text[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, number)
  LEFT JOIN patient_consent c
    ON c.patient_id = asked.patient_id
   AND c.entity_name = asked.entity_name
   AND c.entity_id = asked.entity_id
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
 ORDER BY asked.number
