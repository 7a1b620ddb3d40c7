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
-- Returns   (number, patient_id, permissions, is_seen): a row per patient, number counting the pages
--           from 1; not seen is the last one looked at, where more were to be.
SELECT asked.number::integer AS number, page.*
  FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[])
       WITH ORDINALITY AS asked (entity_name, entity_id, after, rows, wanted, number)
 CROSS JOIN LATERAL (
       SELECT looked.patient_id, looked.permissions, looked.is_seen
         FROM (SELECT c.patient_id, c.permissions, row_number() OVER () AS place,
                      cardinality(c.permissions) > 0
                      AND c.permissions @> string_to_array(asked.wanted, ',') AS is_seen
                 FROM (SELECT consent.patient_id, consent.permissions
                         FROM patient_consent consent
                        WHERE consent.entity_name COLLATE "C" = asked.entity_name
                          AND consent.entity_id COLLATE "C" = asked.entity_id
                          AND consent.patient_id COLLATE "C" > asked.after
                        ORDER BY consent.patient_id COLLATE "C"
                        LIMIT $6::integer) AS c) AS looked
        WHERE looked.is_seen OR looked.place = $6::integer
        LIMIT asked.rows) AS page
 ORDER BY asked.number, page.patient_id COLLATE "C"
