-- list_consents
-- A page of what is granted now or asked for, of some patients, with their versions.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]      the place after which each page begins; '' for the first
--   $3  entity_ids    text[]
--   $4  limits        integer[]
--
-- Returns   (number, version, entity_name, entity_id, permissions, requested, ends,
--           requested_ends): a row per consent, number counting the pages from 1; one row without
--           an entity where a page is empty. Ends: JSON, by record type, null where there are none.
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
)
SELECT asked.number, coalesce(p.version, 0) AS version, page.*
  FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, rows, number)
 CROSS JOIN clock
  LEFT JOIN LATERAL (
       SELECT c.entity_name, c.entity_id, held.permissions, c.requested, c.ends, c.requested_ends
         FROM patient_consent c
        CROSS JOIN LATERAL (
              SELECT CASE WHEN c.ends IS NULL THEN c.permissions ELSE ARRAY(
                         SELECT granted.record_type
                           FROM unnest(c.permissions) AS granted (record_type)
                          WHERE (clock.now < (c.ends ->> granted.record_type)::timestamptz)
                                IS NOT FALSE
                     ) END AS permissions
              OFFSET 0) AS held
        WHERE c.patient_id = asked.patient_id
          AND (c.entity_name COLLATE "C", c.entity_id COLLATE "C")
            > (asked.entity_name, asked.entity_id)
          AND cardinality(held.permissions) + cardinality(c.requested) > 0
        ORDER BY c.entity_name COLLATE "C", c.entity_id COLLATE "C"
        LIMIT asked.rows) AS page ON true
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
 ORDER BY asked.number, page.entity_name COLLATE "C", page.entity_id COLLATE "C"
