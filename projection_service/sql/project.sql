-- project
-- Change the read model and move the checkpoints, in one transaction, all or nothing: provided
-- each checkpoint still stands where the worker believes, and the worker still owns the partition.
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
       FOR UPDATE OF c
       FOR SHARE OF p
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
)
SELECT partition FROM moved
