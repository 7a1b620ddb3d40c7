-- list_patients
-- A page of those whose records somebody may see, for some who ask.
--
--   $1  entity_names  text[]
--   $2  entity_ids    text[]
--   $3  afters        text[]      the patient after whom each page begins; '' for the first
--   $4  limits        integer[]   how many rows to return at most
--   $5  wanted        text[]      record types joined by commas: who lacks one is left out; '' for
--                                 those who have granted anything
--   $6  looked_at     integer     how many consents to look at for each page at most
--
-- Returns   (number, patient_id, permissions, ends, is_seen): a row per patient, number counting the
--           pages from 1; not seen is the last one looked at, where more were to be. Ends: JSON, by
--           record type, null where there are none.
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
)
SELECT asked.number::integer AS number, page.*
  FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[])
       WITH ORDINALITY AS asked (entity_name, entity_id, after, rows, wanted, number)
 CROSS JOIN clock
 CROSS JOIN LATERAL (
       SELECT looked.patient_id, held.permissions, looked.ends, held.is_seen
         FROM (SELECT c.patient_id, c.permissions, c.ends, row_number() OVER () AS place
                 FROM (SELECT consent.patient_id, consent.permissions, consent.ends
                         FROM patient_consent consent
                        WHERE consent.entity_name COLLATE "C" = asked.entity_name
                          AND consent.entity_id COLLATE "C" = asked.entity_id
                          AND consent.patient_id COLLATE "C" > asked.after
                        ORDER BY consent.patient_id COLLATE "C"
                        LIMIT $6::integer) AS c) AS looked
        CROSS JOIN LATERAL (
              SELECT CASE WHEN looked.ends IS NULL THEN looked.permissions ELSE ARRAY(
                         SELECT granted.record_type
                           FROM unnest(looked.permissions) AS granted (record_type)
                          WHERE (clock.now < (looked.ends ->> granted.record_type)::timestamptz)
                                IS NOT FALSE
                     ) END AS permissions
              OFFSET 0) AS now_held
        CROSS JOIN LATERAL (
              SELECT now_held.permissions,
                     cardinality(now_held.permissions) > 0
                     AND now_held.permissions @> string_to_array(asked.wanted, ',') AS is_seen
              OFFSET 0) AS held
        WHERE held.is_seen OR looked.place = $6::integer
        LIMIT asked.rows) AS page
 ORDER BY asked.number, page.patient_id COLLATE "C"
