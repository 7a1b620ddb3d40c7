-- read_patients
-- What the read model has of patients whose events are about to be applied.
--
--   $1  patient_ids  text[]
--   $2  most         integer   how many consents to read of each
--
-- Returns   (patient_id, parked, entity_name, entity_id, permissions, requested): a row per
--           consent; one with nulls for a patient without any. `parked` is the position of the
--           first parked event, or null.
SELECT wanted.patient_id, parked.first AS parked, c.entity_name, c.entity_id, c.permissions,
       c.requested
  FROM unnest($1::text[]) AS wanted (patient_id)
  LEFT JOIN LATERAL (
       SELECT *
         FROM patient_consent
        WHERE patient_id = wanted.patient_id
        LIMIT $2::integer) AS c ON true
  LEFT JOIN LATERAL (
       SELECT min(position) AS first
         FROM parked_events
        WHERE patient_id = wanted.patient_id) AS parked ON true
