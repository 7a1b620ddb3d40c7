-- has_consent
-- What some grantees may see now, with the patients' versions: what is granted and has not ended.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]
--   $3  entity_ids    text[]
--
-- Returns   (version, permissions, ends), a row per question and in their order; no permissions:
--           null; ends: JSON, by record type, null where nothing has one.
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
)
SELECT coalesce(p.version, 0) AS version, c.ends,
       CASE WHEN c.ends IS NULL THEN c.permissions ELSE ARRAY(
           SELECT granted.record_type
             FROM unnest(c.permissions) AS granted (record_type)
            WHERE (clock.now < (c.ends ->> granted.record_type)::timestamptz) IS NOT FALSE
       ) END AS permissions
  FROM unnest($1::text[], $2::text[], $3::text[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, number)
 CROSS JOIN clock
  LEFT JOIN patient_consent c
    ON c.patient_id = asked.patient_id
   AND c.entity_name = asked.entity_name
   AND c.entity_id = asked.entity_id
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
 ORDER BY asked.number
