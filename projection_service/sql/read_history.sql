-- read_history
-- A page of the history of some patients, in the order of its places, with their versions.
--
--   $1  patient_ids     text[]
--   $2  entity_names    text[]      the place after which each page begins; '' for the first
--   $3  entity_ids      text[]
--   $4  record_types    text[]
--   $5  kinds           text[]
--   $6  began_versions  bigint[]
--   $7  limits          integer[]
--
-- Returns   (number, version, known_since, entity_name, entity_id, record_type, kind,
--           began_..., ended_..., expires_at, has_come): a row per period or request, number
--           counting the pages from 1; one row without an entity where a page is empty.
--           has_come: whether the end of what has one is not to come any more.
SELECT asked.number, coalesce(p.version, 0) AS version, horizon.known_since, page.*
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
              $7::integer[])
       WITH ORDINALITY AS asked (patient_id, entity_name, entity_id, record_type, kind,
                                 began_version, rows, number)
  LEFT JOIN patients p ON p.patient_id = asked.patient_id
  LEFT JOIN history_horizon horizon ON horizon.one
  LEFT JOIN LATERAL (
       SELECT h.entity_name, h.entity_id, h.record_type, h.kind,
              h.began_version, h.began_at, h.began_command, h.began_issuer,
              h.ended_version, h.ended_at, h.ended_command, h.ended_issuer, h.ended_cause,
              h.expires_at, h.expires_at <= clock_timestamp() AS has_come
         FROM consent_history h
        WHERE h.patient_id = asked.patient_id
          AND (h.entity_name, h.entity_id, h.record_type, h.kind, h.began_version)
            > (asked.entity_name, asked.entity_id, asked.record_type, asked.kind,
               asked.began_version)
        ORDER BY h.entity_name, h.entity_id, h.record_type, h.kind, h.began_version
        LIMIT asked.rows) AS page ON true
 ORDER BY asked.number, page.entity_name, page.entity_id, page.record_type, page.kind,
          page.began_version
