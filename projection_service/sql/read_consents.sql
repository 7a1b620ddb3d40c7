-- read_consents
-- The consents that a batch of events is about to change.
--
--   $1  patient_ids   text[]
--   $2  entity_names  text[]
--   $3  entity_ids    text[]
--
-- Returns   (patient_id, entity_name, entity_id, permissions, requested, ends, requested_ends) of
--           those that exist; ends: JSON, by record type, null where there are none.
SELECT c.patient_id, c.entity_name, c.entity_id, c.permissions, c.requested, c.ends,
       c.requested_ends
  FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (patient_id, entity_name, entity_id)
  JOIN patient_consent c USING (patient_id, entity_name, entity_id)
