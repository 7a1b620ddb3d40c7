-- list_consents
-- A page of what is granted or asked for, of some patients, with their versions.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]      the place after which each page begins; '' for the first
--   $3  entity_ids    text[]
--   $4  limits        integer[]
--
-- Returns   (number, version, entity_name, entity_id, permissions, requested): a row per consent,
--           number counting the pages from 1; one row without an entity where a page is empty.
SELECT asked.number, coalesce(p.version, 0) AS version, page.*
  FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, rows, number)
  LEFT JOIN LATERAL (
       SELECT c.entity_name, c.entity_id, c.permissions, c.requested
         FROM patient_consent c
        WHERE c.patient_id = asked.patient_id
          AND (c.entity_name COLLATE "C", c.entity_id COLLATE "C")
            > (asked.entity_name, asked.entity_id)
        ORDER BY c.entity_name COLLATE "C", c.entity_id COLLATE "C"
        LIMIT asked.rows) AS page ON true
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
 ORDER BY asked.number, page.entity_name COLLATE "C", page.entity_id COLLATE "C"
