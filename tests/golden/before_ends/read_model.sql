CREATE TABLE public._pogo_migration (
    migration_hash character varying(64) NOT NULL,
    migration_id character varying(255),
    applied timestamp with time zone,
    schema_name character varying(64) NOT NULL
);
CREATE TABLE public._pogo_version (
    version integer NOT NULL,
    installed timestamp with time zone
);
CREATE TABLE public.checkpoints (
    partition integer NOT NULL,
    "position" bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE public.consent_history (
    patient_id text NOT NULL COLLATE pg_catalog."C",
    entity_name text NOT NULL COLLATE pg_catalog."C",
    entity_id text NOT NULL COLLATE pg_catalog."C",
    record_type text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    began_version bigint NOT NULL,
    began_at timestamp with time zone NOT NULL,
    began_command uuid NOT NULL,
    began_issuer text,
    ended_version bigint,
    ended_at timestamp with time zone,
    ended_command uuid,
    ended_issuer text,
    CONSTRAINT consent_history_kind_known CHECK ((kind = ANY (ARRAY['period'::text, 'request'::text])))
)
WITH (fillfactor='85');
CREATE TABLE public.discarded_events (
    partition integer NOT NULL,
    "position" bigint NOT NULL,
    discarded_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.history_horizon (
    known_since timestamp with time zone NOT NULL,
    one boolean DEFAULT true NOT NULL,
    CONSTRAINT history_horizon_one_row CHECK (one)
);
CREATE TABLE public.parked_events (
    partition integer NOT NULL,
    "position" bigint NOT NULL,
    patient_id text NOT NULL,
    event json NOT NULL,
    reason text NOT NULL,
    parked_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.partitions (
    partition integer NOT NULL,
    owner text,
    epoch bigint DEFAULT 0 NOT NULL,
    leased_until timestamp with time zone
)
WITH (fillfactor='50');
CREATE TABLE public.patient_consent (
    patient_id text NOT NULL,
    entity_name text NOT NULL,
    entity_id text NOT NULL,
    permissions text[] NOT NULL,
    requested text[] NOT NULL
)
WITH (fillfactor='80');
CREATE TABLE public.patients (
    patient_id text NOT NULL,
    version bigint NOT NULL
)
WITH (fillfactor='80');
CREATE TABLE public.workers (
    owner text NOT NULL,
    alive_until timestamp with time zone NOT NULL,
    presence bigint
);
INSERT INTO public._pogo_migration VALUES
	('a5182c665a68b49946f4b2b17e9c79fe55ecabd20cd964aaa32dd97353ec4f16', '0001-partitions', '2024-11-26 03:00:37.366021+00', 'public'),
	('09e1cb9aa1fc2c4b5a06d2a8abf03faf94586217ba3f9dc74c6494c90f19ef84', '0007-presence', '2024-11-26 03:00:37.389013+00', 'public'),
	('619b1346979fd15d1fe6132c8fe42099bcf9b3f693d3ef3995b7d6f6e5ed3939', '0002-read-model', '2024-11-26 03:00:37.409084+00', 'public'),
	('dd14579d02475af40e6bf318c8fccbf3d83e81c712b65aaeea19daededa170e3', '0003-parked-events', '2024-11-26 03:00:37.430877+00', 'public'),
	('15cd376ee1e3193e67656f3206889e76d87a278bdd7e3aa0b1f21048372ddabd', '0004-history', '2024-11-26 03:00:37.460716+00', 'public'),
	('80567d9fab2c2841e42e39c76822bcfd10dda4eb364d7021f6b6048b5a6c445c', '0005-discarded-events', '2024-11-26 03:00:37.47683+00', 'public');
INSERT INTO public._pogo_version VALUES
	(0, '2024-11-26 03:00:37.297769+00'),
	(1, '2024-11-26 03:00:37.314526+00');
INSERT INTO public.checkpoints VALUES
	(2, 0),
	(0, 0),
	(1, 5),
	(3, 39);
INSERT INTO public.consent_history VALUES
	('p-long', 'nurse', 'n-1', 'conditions', 'request', 1, '2024-11-26 03:00:47.250162+00', '00000000-0000-bef0-0000-000000000000', NULL, NULL, NULL, NULL, NULL),
	('p-long', 'doctor', 'd-1', 'exams', 'period', 2, '2024-11-26 03:00:47.259129+00', '00000000-0000-bef0-0000-000000000001', NULL, 6, '2024-11-26 03:00:47.270883+00', '00000000-0000-bef0-0000-000000000002', NULL),
	('p-long', 'doctor', 'd-1', 'consultations', 'period', 3, '2024-11-26 03:00:47.259129+00', '00000000-0000-bef0-0000-000000000001', NULL, 7, '2024-11-26 03:00:47.290246+00', '00000000-0000-bef0-0000-000000000003', NULL),
	('p-long', 'doctor', 'd-1', 'conditions', 'period', 4, '2024-11-26 03:00:47.259129+00', '00000000-0000-bef0-0000-000000000001', NULL, 8, '2024-11-26 03:00:47.290246+00', '00000000-0000-bef0-0000-000000000003', NULL),
	('p-long', 'doctor', 'd-1', 'er_visits', 'period', 5, '2024-11-26 03:00:47.259129+00', '00000000-0000-bef0-0000-000000000001', NULL, 9, '2024-11-26 03:00:47.290246+00', '00000000-0000-bef0-0000-000000000003', NULL),
	('p-long', 'doctor', 'd-2', 'exams', 'period', 10, '2024-11-26 03:00:47.296084+00', '00000000-0000-bef0-0000-000000000004', NULL, 14, '2024-11-26 03:00:47.301124+00', '00000000-0000-bef0-0000-000000000005', NULL),
	('p-long', 'doctor', 'd-2', 'consultations', 'period', 11, '2024-11-26 03:00:47.296084+00', '00000000-0000-bef0-0000-000000000004', NULL, 15, '2024-11-26 03:00:47.329992+00', '00000000-0000-bef0-0000-000000000006', NULL),
	('p-long', 'doctor', 'd-2', 'conditions', 'period', 12, '2024-11-26 03:00:47.296084+00', '00000000-0000-bef0-0000-000000000004', NULL, 16, '2024-11-26 03:00:47.329992+00', '00000000-0000-bef0-0000-000000000006', NULL),
	('p-long', 'doctor', 'd-2', 'er_visits', 'period', 13, '2024-11-26 03:00:47.296084+00', '00000000-0000-bef0-0000-000000000004', NULL, 17, '2024-11-26 03:00:47.329992+00', '00000000-0000-bef0-0000-000000000006', NULL),
	('p-long', 'doctor', 'd-3', 'exams', 'period', 18, '2024-11-26 03:00:47.348074+00', '00000000-0000-bef0-0000-000000000007', NULL, 22, '2024-11-26 03:00:47.356459+00', '00000000-0000-bef0-0000-000000000008', NULL),
	('p-long', 'doctor', 'd-3', 'consultations', 'period', 19, '2024-11-26 03:00:47.348074+00', '00000000-0000-bef0-0000-000000000007', NULL, 23, '2024-11-26 03:00:47.367461+00', '00000000-0000-bef0-0000-000000000009', NULL),
	('p-long', 'doctor', 'd-3', 'conditions', 'period', 20, '2024-11-26 03:00:47.348074+00', '00000000-0000-bef0-0000-000000000007', NULL, 24, '2024-11-26 03:00:47.367461+00', '00000000-0000-bef0-0000-000000000009', NULL),
	('p-long', 'doctor', 'd-3', 'er_visits', 'period', 21, '2024-11-26 03:00:47.348074+00', '00000000-0000-bef0-0000-000000000007', NULL, 25, '2024-11-26 03:00:47.367461+00', '00000000-0000-bef0-0000-000000000009', NULL),
	('p-long', 'doctor', 'd-1', 'exams', 'period', 26, '2024-11-26 03:00:47.377178+00', '00000000-0000-bef0-0000-00000000000a', NULL, NULL, NULL, NULL, NULL),
	('p-long', 'doctor', 'd-1', 'er_visits', 'period', 27, '2024-11-26 03:00:47.385917+00', '00000000-0000-bef0-0000-00000000000b', NULL, NULL, NULL, NULL, NULL),
	('p-1', 'doctor', 'd-1', 'exams', 'request', 1, '2024-11-26 03:00:47.393308+00', '00000000-0000-bef0-0000-00000000000c', NULL, 3, '2024-11-26 03:00:47.418653+00', '00000000-0000-bef0-0000-00000000000e', NULL),
	('p-1', 'doctor', 'd-1', 'exams', 'request', 2, '2024-11-26 03:00:47.408897+00', '00000000-0000-bef0-0000-00000000000d', NULL, 3, '2024-11-26 03:00:47.418653+00', '00000000-0000-bef0-0000-00000000000e', NULL),
	('p-1', 'doctor', 'd-1', 'exams', 'period', 3, '2024-11-26 03:00:47.418653+00', '00000000-0000-bef0-0000-00000000000e', NULL, NULL, NULL, NULL, NULL),
	('p-1', 'patient', 'p-2', 'exams', 'period', 4, '2024-11-26 03:00:47.448582+00', '00000000-0000-bef0-0000-000000000011', NULL, NULL, NULL, NULL, NULL),
	('p-1', 'patient', 'p-2', 'consultations', 'period', 5, '2024-11-26 03:00:47.448582+00', '00000000-0000-bef0-0000-000000000011', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.consent_history VALUES
	('p-1', 'patient', 'p-2', 'er_visits', 'period', 7, '2024-11-26 03:00:47.448582+00', '00000000-0000-bef0-0000-000000000011', NULL, NULL, NULL, NULL, NULL),
	('p-1', 'patient', 'p-2', 'conditions', 'period', 6, '2024-11-26 03:00:47.448582+00', '00000000-0000-bef0-0000-000000000011', NULL, 8, '2024-11-26 03:00:47.45502+00', '00000000-0000-bef0-0000-000000000012', NULL),
	('p-2', 'nurse', 'n-1', 'exams', 'request', 1, '2024-11-26 03:00:47.464369+00', '00000000-0000-bef0-0000-000000000013', NULL, NULL, NULL, NULL, NULL),
	('p-2', 'nurse', 'n-1', 'conditions', 'request', 3, '2024-11-26 03:00:47.464369+00', '00000000-0000-bef0-0000-000000000013', NULL, NULL, NULL, NULL, NULL),
	('p-2', 'nurse', 'n-1', 'er_visits', 'request', 4, '2024-11-26 03:00:47.464369+00', '00000000-0000-bef0-0000-000000000013', NULL, NULL, NULL, NULL, NULL),
	('p-2', 'nurse', 'n-1', 'consultations', 'request', 2, '2024-11-26 03:00:47.464369+00', '00000000-0000-bef0-0000-000000000013', NULL, 5, '2024-11-26 03:00:47.480172+00', '00000000-0000-bef0-0000-000000000014', NULL),
	('p-2', 'nurse', 'n-1', 'consultations', 'period', 5, '2024-11-26 03:00:47.480172+00', '00000000-0000-bef0-0000-000000000014', NULL, NULL, NULL, NULL, NULL),
	('p-3', 'doctor', 'd-2', 'exams', 'request', 1, '2024-11-26 03:00:47.505823+00', '00000000-0000-bef0-0000-000000000015', NULL, NULL, NULL, NULL, NULL),
	('p-3', 'doctor', 'd-1', 'exams', 'period', 2, '2024-11-26 03:00:47.515478+00', '00000000-0000-bef0-0000-000000000016', NULL, 3, '2024-11-26 03:00:47.51957+00', '00000000-0000-bef0-0000-000000000017', NULL),
	('p-3', 'doctor', 'd-1', 'exams', 'period', 4, '2024-11-26 03:00:47.527188+00', '00000000-0000-bef0-0000-000000000018', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.partitions VALUES
	(0, NULL, 1, NULL),
	(1, NULL, 1, NULL),
	(2, NULL, 1, NULL),
	(3, NULL, 1, NULL);
INSERT INTO public.patient_consent VALUES
	('p-long', 'nurse', 'n-1', '{}', '{conditions}'),
	('p-long', 'doctor', 'd-1', '{er_visits,exams}', '{}'),
	('p-1', 'doctor', 'd-1', '{exams}', '{}'),
	('p-1', 'patient', 'p-2', '{consultations,er_visits,exams}', '{}'),
	('p-2', 'nurse', 'n-1', '{consultations}', '{conditions,er_visits,exams}'),
	('p-3', 'doctor', 'd-2', '{}', '{exams}'),
	('p-3', 'doctor', 'd-1', '{exams}', '{}');
INSERT INTO public.patients VALUES
	('p-long', 27),
	('p-1', 8),
	('p-2', 5),
	('p-3', 4);
ALTER TABLE ONLY public._pogo_migration
    ADD CONSTRAINT _pogo_migration_pkey PRIMARY KEY (migration_hash, schema_name);
ALTER TABLE ONLY public._pogo_version
    ADD CONSTRAINT _pogo_version_pkey PRIMARY KEY (version);
ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_partition_key PRIMARY KEY (partition);
ALTER TABLE ONLY public.consent_history
    ADD CONSTRAINT consent_history_place_key PRIMARY KEY (patient_id, entity_name, entity_id, record_type, kind, began_version);
ALTER TABLE ONLY public.discarded_events
    ADD CONSTRAINT discarded_events_position_key PRIMARY KEY (partition, "position");
ALTER TABLE ONLY public.history_horizon
    ADD CONSTRAINT history_horizon_one_key PRIMARY KEY (one);
ALTER TABLE ONLY public.parked_events
    ADD CONSTRAINT parked_events_position_key PRIMARY KEY (partition, "position");
ALTER TABLE ONLY public.partitions
    ADD CONSTRAINT partitions_pkey PRIMARY KEY (partition);
ALTER TABLE ONLY public.patient_consent
    ADD CONSTRAINT patient_consent_grantee_key PRIMARY KEY (patient_id, entity_name, entity_id);
ALTER TABLE ONLY public.patients
    ADD CONSTRAINT patients_patient_id_key PRIMARY KEY (patient_id);
ALTER TABLE ONLY public.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (owner);
CREATE INDEX parked_events_patient_idx ON public.parked_events USING btree (patient_id, "position");
