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
--   $10 ends            text[]   JSON: by record type, when what is granted ends; null where never
--   $11 requested_ends  text[]   likewise of what is asked for
--   per patient that changed
--   $12 patient_ids  text[]
--   $13 versions     bigint[]
--   per event that could not be applied
--   $14 partitions   integer[]
--   $15 positions    bigint[]
--   $16 patient_ids  text[]
--   $17 events       text[]   JSON
--   $18 reasons      text[]
--   per period of consent, or request, that begins
--   $19 patient_ids     text[]
--   $20 entity_names    text[]
--   $21 entity_ids      text[]
--   $22 record_types    text[]
--   $23 kinds           text[]         'period' or 'request'
--   $24 began_versions  bigint[]
--   $25 began_ats       timestamptz[]
--   $26 began_commands  uuid[]
--   $27 began_issuers   text[]
--   $28 ended_versions  bigint[]       null where it does not end in the same batch; so the next 3
--   $29 ended_ats       timestamptz[]
--   $30 ended_commands  uuid[]
--   $31 ended_issuers   text[]
--   $32 expires_ats     timestamptz[]  when it ends by itself, or is asked to; null where never
--   $33 ended_causes    text[]         null where revoked, or answered by a grant
--   $34 began_events    uuid[]
--   per period or request that was open before, and ends
--   $35 patient_ids     text[]
--   $36 entity_names    text[]
--   $37 entity_ids      text[]
--   $38 record_types    text[]
--   $39 kinds           text[]
--   $40 ended_versions  bigint[]
--   $41 ended_ats       timestamptz[]
--   $42 ended_commands  uuid[]
--   $43 ended_issuers   text[]
--   $44 ended_causes    text[]
--   per partition, once more
--   $45 event_ids    text[]     the event at the new position; null where it is not known
--   $46 generations  bigint[]   of the log, of that event
--
-- Returns   (partition) of each checkpoint that was moved.
-- Fenced    no rows: another worker has taken a partition; nothing was changed.
WITH given AS (
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bigint[],
                         $45::text[], $46::bigint[])
               AS given (partition, epoch, checkpoint, position, event_id, generation)
), owned AS (
    SELECT c.partition, given.position, given.event_id, given.generation
      FROM checkpoints c
      JOIN given ON given.partition = c.partition AND given.checkpoint = c.position
      JOIN partitions p ON p.partition = given.partition AND p.epoch = given.epoch
     ORDER BY c.partition
       FOR SHARE OF p
       FOR UPDATE OF c
), moved AS (
    UPDATE checkpoints c
       SET position = owned.position,
           event_id = CASE WHEN owned.position = c.position THEN c.event_id
                           ELSE owned.event_id END,
           generation = CASE WHEN owned.position = c.position THEN c.generation
                             ELSE owned.generation END
      FROM owned
     WHERE c.partition = owned.partition
       AND (SELECT count(*) FROM owned) = cardinality($1)
    RETURNING c.partition
), changed AS (
    SELECT patient_id, entity_name, entity_id, string_to_array(permissions, ',') AS permissions,
           string_to_array(requested, ',') AS requested,
           ends::jsonb AS ends, requested_ends::jsonb AS requested_ends
      FROM unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
                  $11::text[])
           AS changed (patient_id, entity_name, entity_id, permissions, requested, ends,
                       requested_ends)
     WHERE EXISTS (SELECT FROM moved)
), kept AS (
    INSERT INTO patient_consent (
        patient_id, entity_name, entity_id, permissions, requested, ends, requested_ends)
    SELECT * FROM changed WHERE cardinality(permissions) + cardinality(requested) > 0
    ON CONFLICT (patient_id, entity_name, entity_id)
    DO UPDATE SET permissions = EXCLUDED.permissions, requested = EXCLUDED.requested,
                  ends = EXCLUDED.ends, requested_ends = EXCLUDED.requested_ends
), removed AS (
    DELETE FROM patient_consent c
     USING changed
     WHERE cardinality(changed.permissions) + cardinality(changed.requested) = 0
       AND c.patient_id = changed.patient_id
       AND c.entity_name = changed.entity_name
       AND c.entity_id = changed.entity_id
), versioned AS (
    INSERT INTO patients (patient_id, version)
    SELECT * FROM unnest($12::text[], $13::bigint[]) WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (patient_id) DO UPDATE SET version = EXCLUDED.version
), parked AS (
    INSERT INTO parked_events (partition, position, patient_id, event, reason)
    SELECT partition, position, patient_id, event::json, reason
      FROM unnest($14::integer[], $15::bigint[], $16::text[], $17::text[], $18::text[])
           AS parked (partition, position, patient_id, event, reason)
     WHERE EXISTS (SELECT FROM moved)
), begun AS (
    -- A version twice is no event of ours: it must not stop the others.
    INSERT INTO consent_history (
        patient_id, entity_name, entity_id, record_type, kind,
        began_version, began_at, began_command, began_issuer,
        ended_version, ended_at, ended_command, ended_issuer, expires_at, ended_cause, began_event)
    SELECT * FROM unnest($19::text[], $20::text[], $21::text[], $22::text[], $23::text[],
                         $24::bigint[], $25::timestamptz[], $26::uuid[], $27::text[],
                         $28::bigint[], $29::timestamptz[], $30::uuid[], $31::text[],
                         $32::timestamptz[], $33::text[], $34::uuid[])
     WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (patient_id, entity_name, entity_id, record_type, kind, began_version) DO NOTHING
), ended AS (
    -- What ends, ends with all that is open of the same: so the open ones follow the last ended
    -- one in the key. OFFSET 0 keeps the planner from reading whole tables while they are small.
    INSERT INTO consent_history (
        patient_id, entity_name, entity_id, record_type, kind,
        began_version, began_at, began_command, began_issuer,
        ended_version, ended_at, ended_command, ended_issuer, ended_cause)
    SELECT ended.patient_id, ended.entity_name, ended.entity_id, ended.record_type, ended.kind,
           open.began_version, open.began_at, open.began_command, open.began_issuer,
           ended.version, ended.at, ended.command, ended.issuer, ended.cause
      FROM unnest($35::text[], $36::text[], $37::text[], $38::text[], $39::text[],
                  $40::bigint[], $41::timestamptz[], $42::uuid[], $43::text[], $44::text[])
           AS ended (patient_id, entity_name, entity_id, record_type, kind,
                     version, at, command, issuer, cause)
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
                  ended_command = EXCLUDED.ended_command, ended_issuer = EXCLUDED.ended_issuer,
                  ended_cause = EXCLUDED.ended_cause
)
SELECT partition FROM moved
