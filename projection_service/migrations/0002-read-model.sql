-- Who may see what, how far the log is projected, and what could not be applied
-- depends: 0001-partitions

-- migrate: apply

CREATE TABLE checkpoints (
    partition integer NOT NULL,
    position  bigint  NOT NULL DEFAULT 0,
    CONSTRAINT checkpoints_partition_key PRIMARY KEY (partition)
) WITH (fillfactor = 50);

CREATE TABLE patients (
    patient_id text   NOT NULL,
    version    bigint NOT NULL,
    CONSTRAINT patients_patient_id_key PRIMARY KEY (patient_id)
) WITH (fillfactor = 80);

CREATE TABLE patient_consent (
    patient_id  text   NOT NULL,
    entity_name text   NOT NULL,
    entity_id   text   NOT NULL,
    permissions text[] NOT NULL,
    requested   text[] NOT NULL,
    CONSTRAINT patient_consent_grantee_key PRIMARY KEY (patient_id, entity_name, entity_id)
) WITH (fillfactor = 80);

-- migrate: rollback

DROP TABLE patient_consent;
DROP TABLE patients;
DROP TABLE checkpoints;
