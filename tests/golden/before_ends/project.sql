-- project
-- Change the read model and move the checkpoints, in one transaction, all or nothing: provided
-- each checkpoint still stands where the worker believes, and the worker still owns the partition.
-- Of each partition its own row is locked before its checkpoint, as whoever fences it does.
--
--   per partition
--   $1  partitions   integer[]
--   $2  epochs       bigint[]   the epoch under which this worker took each
--   $3  checkpoints  bigint[]   where the worker believes each stands
--   $4  positions    bigint[]   where each moves to
--   per consent that changed
--   $5  patient_ids   text[]
--   $6  entity_names  text[]
--   $7  entity_ids    text[]
--   $8  permissions   text[]   each a list, joined by commas
--   $9  requested     text[]   likewise; where both are empty, the consent is removed
--   per patient that changed
--   $10 patient_ids  text[]
--   $11 versions     bigint[]
--   per event that could not be applied
--   $12 partitions   integer[]
--   $13 positions    bigint[]
--   $14 patient_ids  text[]
--   $15 events       text[]   JSON
--   $16 reasons      text[]
--   per period of consent, or request, that begins
--   $17 patient_ids     text[]
--   $18 entity_names    text[]
--   $19 entity_ids      text[]
--   $20 record_types    text[]
--   $21 kinds           text[]         'period' or 'request'
--   $22 began_versions  bigint[]
--   $23 began_ats       timestamptz[]
--   $24 began_commands  uuid[]
--   $25 began_issuers   text[]
--   $26 ended_versions  bigint[]       null where it does not end in the same batch; so the next 3
--   $27 ended_ats       timestamptz[]
--   $28 ended_commands  uuid[]
--   $29 ended_issuers   text[]
--   per period or request that was open before, and ends
--   $30 patient_ids     text[]
--   $31 entity_names    text[]
--   $32 entity_ids      text[]
--   $33 record_types    text[]
--   $34 kinds           text[]
--   $35 ended_versions  bigint[]
--   $36 ended_ats       timestamptz[]
--   $37 ended_commands  uuid[]
--   $38 ended_issuers   text[]
--
-- Returns   (partition) of each checkpoint that was moved.
-- Fenced    no rows: another worker has taken a partition; nothing was changed.
WITH given AS (
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bigint[])
               AS given (partition, epoch, checkpoint, position)
), owned AS (
    SELECT c.partition, given.position
      FROM checkpoints c
      JOIN given ON given.partition = c.partition AND given.checkpoint = c.position
      JOIN partitions p ON p.partition = given.partition AND p.epoch = given.epoch
     ORDER BY c.partition
       FOR SHARE OF p
       FOR UPDATE OF c
), moved AS (
    UPDATE checkpoints c
       SET position = owned.position
      FROM owned
     WHERE c.partition = owned.partition
       AND (SELECT count(*) FROM owned) = cardinality($1)
    RETURNING c.partition
), changed AS (
    SELECT patient_id, entity_name, entity_id, string_to_array(permissions, ',') AS permissions,
           string_to_array(requested, ',') AS requested
      FROM unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
           AS changed (patient_id, entity_name, entity_id, permissions, requested)
     WHERE EXISTS (SELECT FROM moved)
), kept AS (
    INSERT INTO patient_consent (patient_id, entity_name, entity_id, permissions, requested)
    SELECT * FROM changed WHERE cardinality(permissions) + cardinality(requested) > 0
    ON CONFLICT (patient_id, entity_name, entity_id)
    DO UPDATE SET permissions = EXCLUDED.permissions, requested = EXCLUDED.requested
), removed AS (
    DELETE FROM patient_consent c
     USING changed
     WHERE cardinality(changed.permissions) + cardinality(changed.requested) = 0
       AND c.patient_id = changed.patient_id
       AND c.entity_name = changed.entity_name
       AND c.entity_id = changed.entity_id
), versioned AS (
    INSERT INTO patients (patient_id, version)
    SELECT * FROM unnest($10::text[], $11::bigint[]) WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (patient_id) DO UPDATE SET version = EXCLUDED.version
), parked AS (
    INSERT INTO parked_events (partition, position, patient_id, event, reason)
    SELECT partition, position, patient_id, event::json, reason
      FROM unnest($12::integer[], $13::bigint[], $14::text[], $15::text[], $16::text[])
           AS parked (partition, position, patient_id, event, reason)
     WHERE EXISTS (SELECT FROM moved)
), begun AS (
    -- A version twice is no event of ours: it must not stop the others.
    INSERT INTO consent_history (
        patient_id, entity_name, entity_id, record_type, kind,
        began_version, began_at, began_command, began_issuer,
        ended_version, ended_at, ended_command, ended_issuer)
    SELECT * FROM unnest($17::text[], $18::text[], $19::text[], $20::text[], $21::text[],
                         $22::bigint[], $23::timestamptz[], $24::uuid[], $25::text[],
                         $26::bigint[], $27::timestamptz[], $28::uuid[], $29::text[])
     WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (patient_id, entity_name, entity_id, record_type, kind, began_version) DO NOTHING
), ended AS (
    -- What ends, ends with all that is open of the same: so the open ones follow the last ended
    -- one in the key. OFFSET 0 keeps the planner from reading whole tables while they are small.
    INSERT INTO consent_history (
        patient_id, entity_name, entity_id, record_type, kind,
        began_version, began_at, began_command, began_issuer,
        ended_version, ended_at, ended_command, ended_issuer)
    SELECT ended.patient_id, ended.entity_name, ended.entity_id, ended.record_type, ended.kind,
           open.began_version, open.began_at, open.began_command, open.began_issuer,
           ended.version, ended.at, ended.command, ended.issuer
      FROM unnest($30::text[], $31::text[], $32::text[], $33::text[], $34::text[],
                  $35::bigint[], $36::timestamptz[], $37::uuid[], $38::text[])
           AS ended (patient_id, entity_name, entity_id, record_type, kind,
                     version, at, command, issuer)
     CROSS JOIN LATERAL (
           SELECT h.began_version, h.began_at, h.began_command, h.began_issuer
             FROM consent_history h
            WHERE h.patient_id = ended.patient_id
              AND h.entity_name = ended.entity_name
              AND h.entity_id = ended.entity_id
              AND h.record_type = ended.record_type
              AND h.kind = ended.kind
              AND h.began_version > coalesce((
                  SELECT last.began_version
                    FROM consent_history last
                   WHERE last.patient_id = ended.patient_id
                     AND last.entity_name = ended.entity_name
                     AND last.entity_id = ended.entity_id
                     AND last.record_type = ended.record_type
                     AND last.kind = ended.kind
                     AND last.ended_version IS NOT NULL
                   ORDER BY last.began_version DESC
                   LIMIT 1), 0)
           OFFSET 0) AS open
     WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (patient_id, entity_name, entity_id, record_type, kind, began_version)
    DO UPDATE SET ended_version = EXCLUDED.ended_version, ended_at = EXCLUDED.ended_at,
                  ended_command = EXCLUDED.ended_command, ended_issuer = EXCLUDED.ended_issuer
)
SELECT partition FROM moved
