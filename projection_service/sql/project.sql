-- project
-- Change the read model and move the checkpoints, in one transaction, all or nothing: provided
-- each checkpoint still stands where the worker believes, and the worker still owns the partition.
-- Of each partition its own row is locked before its checkpoint, as whoever fences it does: so that
-- nobody takes it over meanwhile, while its lease can be renewed.
-- For a row that somebody else has locked it waits for 0.3 s, and not until that is free.
--
-- Each parameter is a list of objects in JSON: a driver encodes a column at a time, and for a batch
-- of one that took it longer than the server needs to apply it.
--
--   $1  moves     json   per partition: epoch (under which this worker took it), checkpoint (where
--                        the worker believes it stands), position (where it moves to), event_id (of
--                        the event there; null where it is not known), generation (of the log, of
--                        that event)
--   $2  consents  json   per consent that changed: permissions, requested (arrays as PostgreSQL
--                        writes them; where both are empty, the consent is removed), ends (JSON: by
--                        record type, when what is granted ends; null where never), requested_ends
--                        (likewise of what is asked for)
--   $3  patients  json   per patient that changed
--   $4  parked    json   per event that could not be applied; event: JSON
--   $5  begun     json   per period of consent, or request, that begins; kind: 'period' or
--                        'request'; expires_at: when it ends by itself, or is asked to, null where
--                        never; ended_...: null where it does not end in the same batch;
--                        ended_cause: null where revoked, or answered by a grant
--   $6  ended     json   per period or request that was open before, and ends
--
-- Returns   (partition) of each checkpoint that was moved.
-- Fenced    no rows: another worker has taken a partition; nothing was changed.
-- Locked    lock_not_available: a row is locked; nothing was changed.
WITH patience AS (
    SELECT set_config('lock_timeout', '300ms', true)
), given AS (
    SELECT given.*
      FROM patience,
           json_to_recordset($1::json)
               AS given (partition integer, epoch bigint, checkpoint bigint, position bigint,
                         event_id text, generation bigint)
), owned AS (
    SELECT c.partition, given.position, given.event_id, given.generation
      FROM checkpoints c
      JOIN given ON given.partition = c.partition AND given.checkpoint = c.position
      JOIN partitions p ON p.partition = given.partition AND p.epoch = given.epoch
     ORDER BY c.partition
       FOR KEY SHARE OF p
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
       AND (SELECT count(*) FROM owned) = (SELECT count(*) FROM given)
    RETURNING c.partition
), changed AS (
    SELECT patient_id, entity_name, entity_id, permissions, requested,
           ends::jsonb AS ends, requested_ends::jsonb AS requested_ends
      FROM json_to_recordset($2::json)
           AS changed (patient_id text, entity_name text, entity_id text, permissions text[],
                       requested text[], ends text, requested_ends text)
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
    SELECT patient_id, version
      FROM json_to_recordset($3::json) AS changed (patient_id text, version bigint)
     WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (patient_id) DO UPDATE SET version = EXCLUDED.version
), parked AS (
    INSERT INTO parked_events (partition, position, patient_id, event, reason)
    SELECT partition, position, patient_id, event::json, reason
      FROM json_to_recordset($4::json)
           AS parked (partition integer, position bigint, patient_id text, event text, reason text)
     WHERE EXISTS (SELECT FROM moved)
), begun AS (
    -- A version twice is no event of ours: it must not stop the others.
    INSERT INTO consent_history (
        patient_id, entity_name, entity_id, record_type, kind,
        began_version, began_at, began_command, began_issuer,
        ended_version, ended_at, ended_command, ended_issuer, expires_at, ended_cause, began_event)
    SELECT *
      FROM json_to_recordset($5::json)
           AS begun (patient_id text, entity_name text, entity_id text, record_type text, kind text,
                     began_version bigint, began_at timestamptz, began_command uuid,
                     began_issuer text, ended_version bigint, ended_at timestamptz,
                     ended_command uuid, ended_issuer text, expires_at timestamptz,
                     ended_cause text, began_event uuid)
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
           ended.ended_version, ended.ended_at, ended.ended_command, ended.ended_issuer,
           ended.ended_cause
      FROM json_to_recordset($6::json)
           AS ended (patient_id text, entity_name text, entity_id text, record_type text, kind text,
                     ended_version bigint, ended_at timestamptz, ended_command uuid,
                     ended_issuer text, ended_cause text)
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
