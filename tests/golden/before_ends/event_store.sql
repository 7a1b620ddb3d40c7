CREATE FUNCTION public.refuse_to_rewrite_the_log() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'the log cannot be rewritten: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;
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
CREATE TABLE public.command_receipts (
    command_id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    patient_id text NOT NULL,
    partition integer NOT NULL,
    stream_version bigint NOT NULL,
    first_position bigint,
    event_count integer NOT NULL,
    error text,
    message text,
    recorded_at timestamp with time zone NOT NULL
);
CREATE TABLE public.events (
    partition integer NOT NULL,
    "position" bigint NOT NULL,
    stream_id text NOT NULL,
    stream_version bigint NOT NULL,
    event_id uuid NOT NULL,
    type text NOT NULL,
    schema_version smallint NOT NULL,
    data json NOT NULL,
    recorded_at timestamp with time zone NOT NULL,
    correlation_id text NOT NULL,
    causation_id uuid NOT NULL,
    issued_by text,
    traceparent text,
    tracestate text
);
CREATE TABLE public.partitions (
    partition integer NOT NULL,
    owner text,
    epoch bigint DEFAULT 0 NOT NULL,
    leased_until timestamp with time zone,
    "position" bigint DEFAULT 0 NOT NULL,
    published_position bigint DEFAULT 0 NOT NULL,
    recorded_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE public.snapshots (
    stream_id text NOT NULL,
    stream_version bigint NOT NULL,
    format smallint NOT NULL,
    state text NOT NULL,
    digest bytea NOT NULL,
    taken_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.suspects (
    digest bytea NOT NULL,
    attempts integer NOT NULL
);
CREATE TABLE public.workers (
    owner text NOT NULL,
    alive_until timestamp with time zone NOT NULL,
    presence bigint
);
INSERT INTO public._pogo_migration VALUES
	('a5182c665a68b49946f4b2b17e9c79fe55ecabd20cd964aaa32dd97353ec4f16', '0001-partitions', '2024-11-26 03:00:37.351358+00', 'public'),
	('09e1cb9aa1fc2c4b5a06d2a8abf03faf94586217ba3f9dc74c6494c90f19ef84', '0007-presence', '2024-11-26 03:00:37.42929+00', 'public'),
	('769460a70b809602ff17cc14b1ee914d45c65f392e11c6f97478260aeeb19f67', '0002-events', '2024-11-26 03:00:37.518457+00', 'public'),
	('4e3ae41b7a01615ffd7403b744e11b8ab0616552acb78d15f7951fbcc8d88d13', '0003-log-cannot-be-rewritten', '2024-11-26 03:00:37.610246+00', 'public'),
	('225515c015ee53b7f1bee69d1f2220f9d394de0651c95600828996337bb30be6', '0004-suspects', '2024-11-26 03:00:37.631033+00', 'public'),
	('da4a9a561f5350ecbc050b23f92b504a6fe51aaccd9f863a37aa7fd5f22d7d14', '0005-snapshots', '2024-11-26 03:00:37.664405+00', 'public'),
	('985714e49bca7f18c4141b70322d8388bde06b6b5d1ff360b2a3086878ac9fc2', '0006-receipts-by-time', '2024-11-26 03:00:37.673158+00', 'public');
INSERT INTO public._pogo_version VALUES
	(0, '2024-11-26 03:00:37.252972+00'),
	(1, '2024-11-26 03:00:37.278669+00');
INSERT INTO public.command_receipts VALUES
	('00000000-0000-bef0-0000-000000000000', '\x01720442d93a5162d0798300d5e208f0bb', 'p-long', 3, 1, 1, 1, NULL, NULL, '2024-11-26 03:00:47.250162+00'),
	('00000000-0000-bef0-0000-000000000001', '\x014f987fa4833a1d8146d6f7569aa69080', 'p-long', 3, 5, 2, 4, NULL, NULL, '2024-11-26 03:00:47.259129+00'),
	('00000000-0000-bef0-0000-000000000002', '\x01c5991575d16cf256e05f27b6f85cc030', 'p-long', 3, 6, 6, 1, NULL, NULL, '2024-11-26 03:00:47.270883+00'),
	('00000000-0000-bef0-0000-000000000003', '\x019463606d221b4efd70d8c88315e99a91', 'p-long', 3, 9, 7, 3, NULL, NULL, '2024-11-26 03:00:47.290246+00'),
	('00000000-0000-bef0-0000-000000000004', '\x0144c1068959b47aa64fd0952b51536c06', 'p-long', 3, 13, 10, 4, NULL, NULL, '2024-11-26 03:00:47.296084+00'),
	('00000000-0000-bef0-0000-000000000005', '\x01874c1bb0bdb84abfc1dba6a45affd57e', 'p-long', 3, 14, 14, 1, NULL, NULL, '2024-11-26 03:00:47.301124+00'),
	('00000000-0000-bef0-0000-000000000006', '\x01588ff116b4e99d5a5b825a6a794090c4', 'p-long', 3, 17, 15, 3, NULL, NULL, '2024-11-26 03:00:47.329992+00'),
	('00000000-0000-bef0-0000-000000000007', '\x01ec2e7ccd5b4dfe1d95c205682857475d', 'p-long', 3, 21, 18, 4, NULL, NULL, '2024-11-26 03:00:47.348074+00'),
	('00000000-0000-bef0-0000-000000000008', '\x0144e5e668ba04024c4db7c4d82b603215', 'p-long', 3, 22, 22, 1, NULL, NULL, '2024-11-26 03:00:47.356459+00'),
	('00000000-0000-bef0-0000-000000000009', '\x012b223869aca85b26126259451b219a35', 'p-long', 3, 25, 23, 3, NULL, NULL, '2024-11-26 03:00:47.367461+00'),
	('00000000-0000-bef0-0000-00000000000a', '\x016674eb0d27fe2c294628d4bc43093ae1', 'p-long', 3, 26, 26, 1, NULL, NULL, '2024-11-26 03:00:47.377178+00'),
	('00000000-0000-bef0-0000-00000000000b', '\x0109a5967a850ca282c2f2c65970da63f8', 'p-long', 3, 27, 27, 1, NULL, NULL, '2024-11-26 03:00:47.385917+00'),
	('00000000-0000-bef0-0000-00000000000c', '\x0182f4aef7653b1551c123584fe79c2087', 'p-1', 3, 1, 28, 1, NULL, NULL, '2024-11-26 03:00:47.393308+00'),
	('00000000-0000-bef0-0000-00000000000d', '\x0182f4aef7653b1551c123584fe79c2087', 'p-1', 3, 2, 29, 1, NULL, NULL, '2024-11-26 03:00:47.408897+00'),
	('00000000-0000-bef0-0000-00000000000e', '\x01728dcdebfc98659aeae85947c7c85838', 'p-1', 3, 3, 30, 1, NULL, NULL, '2024-11-26 03:00:47.418653+00'),
	('00000000-0000-bef0-0000-00000000000f', '\x01728dcdebfc98659aeae85947c7c85838', 'p-1', 3, 3, NULL, 0, 'consent_already_granted', 'doctor d-1 already has consent to exams', '2024-11-26 03:00:47.42291+00'),
	('00000000-0000-bef0-0000-000000000010', '\x0173a8d69b0b20dc13868ab0b6c95c5867', 'p-1', 3, 3, NULL, 0, 'consent_not_granted', 'doctor d-1 has no consent to er_visits', '2024-11-26 03:00:47.443813+00'),
	('00000000-0000-bef0-0000-000000000011', '\x01ef4aef480eeef06518c22fd32f8d1f62', 'p-1', 3, 7, 31, 4, NULL, NULL, '2024-11-26 03:00:47.448582+00'),
	('00000000-0000-bef0-0000-000000000012', '\x0136a258c9501cec2ae162b91c57b10245', 'p-1', 3, 8, 35, 1, NULL, NULL, '2024-11-26 03:00:47.45502+00'),
	('00000000-0000-bef0-0000-000000000013', '\x01815a3e8aaa7ce702e1dd580473f43b6c', 'p-2', 1, 4, 1, 4, NULL, NULL, '2024-11-26 03:00:47.464369+00');
INSERT INTO public.command_receipts VALUES
	('00000000-0000-bef0-0000-000000000014', '\x01b239837c482a2092e347956c86a04d6d', 'p-2', 1, 5, 5, 1, NULL, NULL, '2024-11-26 03:00:47.480172+00'),
	('00000000-0000-bef0-0000-000000000015', '\x01f1bd3c78f6fb4dc312d0e87957976c37', 'p-3', 3, 1, 36, 1, NULL, NULL, '2024-11-26 03:00:47.505823+00'),
	('00000000-0000-bef0-0000-000000000016', '\x01ef261833c719462600f4d5e824676c08', 'p-3', 3, 2, 37, 1, NULL, NULL, '2024-11-26 03:00:47.515478+00'),
	('00000000-0000-bef0-0000-000000000017', '\x01f51921efbe733119c127b59c27ce30cc', 'p-3', 3, 3, 38, 1, NULL, NULL, '2024-11-26 03:00:47.51957+00'),
	('00000000-0000-bef0-0000-000000000018', '\x01ef261833c719462600f4d5e824676c08', 'p-3', 3, 4, 39, 1, NULL, NULL, '2024-11-26 03:00:47.527188+00'),
	('00000000-0000-bef0-0000-000000000064', '\x01c4760536a2aec04348e3ddb5c6db33bd', 'p-long', 3, 28, 40, 1, NULL, NULL, '2024-11-26 03:00:47.816985+00'),
	('00000000-0000-bef0-0000-000000000065', '\x0122b1816df616ff78f0fb34b0898e7326', 'p-1', 3, 9, 41, 1, NULL, NULL, '2024-11-26 03:00:47.835844+00'),
	('00000000-0000-bef0-0000-000000000066', '\x01f51921efbe733119c127b59c27ce30cc', 'p-3', 3, 5, 42, 1, NULL, NULL, '2024-11-26 03:00:47.842203+00'),
	('00000000-0000-bef0-0000-000000000067', '\x01a1f80a24693dd4fa8a55a36e785eee1f', 'p-4', 0, 1, 1, 1, NULL, NULL, '2024-11-26 03:00:47.858472+00');
INSERT INTO public.events VALUES
	(3, 1, 'p-long', 1, '005ee335-6587-4cee-b1f4-ff0db08824c9', 'ConsentAsked', 1, '{"patient_id":"p-long","by_entity":"nurse","by_id":"n-1","target":"conditions"}', '2024-11-26 03:00:47.250162+00', 'ab614a86-618a-40a0-b6a0-174191209855', '00000000-0000-bef0-0000-000000000000', NULL, NULL, NULL),
	(3, 2, 'p-long', 2, 'cf449269-fd74-426f-ac03-25aa7354c7ae', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.259129+00', '9e583b56-585c-4ac6-92fc-0aa5827f569f', '00000000-0000-bef0-0000-000000000001', NULL, NULL, NULL),
	(3, 3, 'p-long', 3, '0345785f-b903-4acb-a798-248d0bfacd6a', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-1","target":"consultations"}', '2024-11-26 03:00:47.259129+00', '9e583b56-585c-4ac6-92fc-0aa5827f569f', '00000000-0000-bef0-0000-000000000001', NULL, NULL, NULL),
	(3, 4, 'p-long', 4, '7774abec-d45d-4083-97ad-c28a67ba92fd', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-1","target":"conditions"}', '2024-11-26 03:00:47.259129+00', '9e583b56-585c-4ac6-92fc-0aa5827f569f', '00000000-0000-bef0-0000-000000000001', NULL, NULL, NULL),
	(3, 5, 'p-long', 5, '3f08e375-603b-4187-aeb7-90a37449c528', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-1","target":"er_visits"}', '2024-11-26 03:00:47.259129+00', '9e583b56-585c-4ac6-92fc-0aa5827f569f', '00000000-0000-bef0-0000-000000000001', NULL, NULL, NULL),
	(3, 6, 'p-long', 6, '23811c5b-8391-4d26-8956-7d3e3d10ead1', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.270883+00', 'e08b5c6a-b42f-41c2-a4a8-b957af62f723', '00000000-0000-bef0-0000-000000000002', NULL, NULL, NULL),
	(3, 7, 'p-long', 7, 'a6931788-577d-4383-a876-a7962e238006', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-1","target":"consultations"}', '2024-11-26 03:00:47.290246+00', 'f3d33ac2-21c5-4236-a384-527b6f0a0d49', '00000000-0000-bef0-0000-000000000003', NULL, NULL, NULL),
	(3, 8, 'p-long', 8, '3b0c2bef-2160-4ef5-91ed-d2af1e021739', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-1","target":"conditions"}', '2024-11-26 03:00:47.290246+00', 'f3d33ac2-21c5-4236-a384-527b6f0a0d49', '00000000-0000-bef0-0000-000000000003', NULL, NULL, NULL),
	(3, 9, 'p-long', 9, '6db02291-f1cf-481d-9dfa-8f53ad4462af', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-1","target":"er_visits"}', '2024-11-26 03:00:47.290246+00', 'f3d33ac2-21c5-4236-a384-527b6f0a0d49', '00000000-0000-bef0-0000-000000000003', NULL, NULL, NULL),
	(3, 10, 'p-long', 10, '815bedbe-95e4-4226-84ea-4a68ad6a0acf', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-2","target":"exams"}', '2024-11-26 03:00:47.296084+00', '2851ba50-7ae9-410f-8ea7-737cc0c86b42', '00000000-0000-bef0-0000-000000000004', NULL, NULL, NULL),
	(3, 11, 'p-long', 11, 'c4dfe2be-69eb-47cb-a32d-679ced5e99a1', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-2","target":"consultations"}', '2024-11-26 03:00:47.296084+00', '2851ba50-7ae9-410f-8ea7-737cc0c86b42', '00000000-0000-bef0-0000-000000000004', NULL, NULL, NULL),
	(3, 12, 'p-long', 12, '73b13450-fd02-4a17-9765-23bfb90a1bad', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-2","target":"conditions"}', '2024-11-26 03:00:47.296084+00', '2851ba50-7ae9-410f-8ea7-737cc0c86b42', '00000000-0000-bef0-0000-000000000004', NULL, NULL, NULL),
	(3, 13, 'p-long', 13, 'a4d611f6-9f34-450d-83c1-e3eda9c6a574', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-2","target":"er_visits"}', '2024-11-26 03:00:47.296084+00', '2851ba50-7ae9-410f-8ea7-737cc0c86b42', '00000000-0000-bef0-0000-000000000004', NULL, NULL, NULL),
	(3, 14, 'p-long', 14, 'e324aa3f-c03e-477d-883a-b315d296661a', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-2","target":"exams"}', '2024-11-26 03:00:47.301124+00', '06269342-0c97-4a3a-b0f7-1615d25e61e3', '00000000-0000-bef0-0000-000000000005', NULL, NULL, NULL),
	(3, 15, 'p-long', 15, 'a2066419-2d46-4aa8-a80c-3268a85a670a', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-2","target":"consultations"}', '2024-11-26 03:00:47.329992+00', 'f6987c2b-94f6-4ce3-89be-a77663505265', '00000000-0000-bef0-0000-000000000006', NULL, NULL, NULL),
	(3, 16, 'p-long', 16, '028f7e19-643e-4d5b-b536-30fa704dae49', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-2","target":"conditions"}', '2024-11-26 03:00:47.329992+00', 'f6987c2b-94f6-4ce3-89be-a77663505265', '00000000-0000-bef0-0000-000000000006', NULL, NULL, NULL),
	(3, 17, 'p-long', 17, '37b52245-1e09-4441-b35a-3b483e3e900c', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-2","target":"er_visits"}', '2024-11-26 03:00:47.329992+00', 'f6987c2b-94f6-4ce3-89be-a77663505265', '00000000-0000-bef0-0000-000000000006', NULL, NULL, NULL),
	(3, 18, 'p-long', 18, '80c47f89-f1c2-4d45-8356-2edc3680d2d9', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-3","target":"exams"}', '2024-11-26 03:00:47.348074+00', 'f2ea8719-66c1-4f40-b4ad-0ae55cd10f2a', '00000000-0000-bef0-0000-000000000007', NULL, NULL, NULL),
	(3, 19, 'p-long', 19, 'dc7b4350-6217-41dc-8e37-525341ca2adc', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-3","target":"consultations"}', '2024-11-26 03:00:47.348074+00', 'f2ea8719-66c1-4f40-b4ad-0ae55cd10f2a', '00000000-0000-bef0-0000-000000000007', NULL, NULL, NULL),
	(3, 20, 'p-long', 20, '56306325-f691-49ee-96eb-b44d828008e6', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-3","target":"conditions"}', '2024-11-26 03:00:47.348074+00', 'f2ea8719-66c1-4f40-b4ad-0ae55cd10f2a', '00000000-0000-bef0-0000-000000000007', NULL, NULL, NULL);
INSERT INTO public.events VALUES
	(3, 21, 'p-long', 21, '09bf5ea6-d093-451d-9aac-e642650c91d0', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-3","target":"er_visits"}', '2024-11-26 03:00:47.348074+00', 'f2ea8719-66c1-4f40-b4ad-0ae55cd10f2a', '00000000-0000-bef0-0000-000000000007', NULL, NULL, NULL),
	(3, 22, 'p-long', 22, 'f23be6f4-29e9-4f56-8b61-32fed9a557bd', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-3","target":"exams"}', '2024-11-26 03:00:47.356459+00', '7d0490c3-cb18-466d-bcb7-125fbb3a1250', '00000000-0000-bef0-0000-000000000008', NULL, NULL, NULL),
	(3, 23, 'p-long', 23, '4dffce79-946c-4c7d-a0e8-1519043b4a50', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-3","target":"consultations"}', '2024-11-26 03:00:47.367461+00', '8a78997f-1b97-402a-8213-910c834ba00c', '00000000-0000-bef0-0000-000000000009', NULL, NULL, NULL),
	(3, 24, 'p-long', 24, '6451b6f4-e8d5-4ef6-95f8-93094390196c', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-3","target":"conditions"}', '2024-11-26 03:00:47.367461+00', '8a78997f-1b97-402a-8213-910c834ba00c', '00000000-0000-bef0-0000-000000000009', NULL, NULL, NULL),
	(3, 25, 'p-long', 25, '738cebb3-acaa-4947-98aa-95f9f50c4f08', 'ConsentRevoked', 1, '{"patient_id":"p-long","from_entity":"doctor","from_id":"d-3","target":"er_visits"}', '2024-11-26 03:00:47.367461+00', '8a78997f-1b97-402a-8213-910c834ba00c', '00000000-0000-bef0-0000-000000000009', NULL, NULL, NULL),
	(3, 26, 'p-long', 26, '4a5fb194-caae-4c03-9b60-182dc2a5f0d6', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.377178+00', '1f535081-5230-4b45-a6a3-f4cb00bf02e2', '00000000-0000-bef0-0000-00000000000a', NULL, NULL, NULL),
	(3, 27, 'p-long', 27, '2462a699-8e74-41d6-805c-16b25f792d65', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-1","target":"er_visits"}', '2024-11-26 03:00:47.385917+00', 'b03c11b8-3a38-45b5-abee-0c039502bf71', '00000000-0000-bef0-0000-00000000000b', NULL, NULL, NULL),
	(3, 28, 'p-1', 1, '09b1a8cf-9586-4ec8-9d8c-156624e9ba8b', 'ConsentAsked', 1, '{"patient_id":"p-1","by_entity":"doctor","by_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.393308+00', '89feef00-6572-48ab-99ca-0398a77fc0d9', '00000000-0000-bef0-0000-00000000000c', NULL, NULL, NULL),
	(3, 29, 'p-1', 2, '6e66177b-767b-43d0-b8e7-517b71536649', 'ConsentAsked', 1, '{"patient_id":"p-1","by_entity":"doctor","by_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.408897+00', '427a04dd-9e19-45ab-8a25-3ae44324c256', '00000000-0000-bef0-0000-00000000000d', NULL, NULL, NULL),
	(3, 30, 'p-1', 3, 'd5c0e2de-d891-4dd7-beea-d59141a026da', 'ConsentGranted', 1, '{"patient_id":"p-1","to_entity":"doctor","to_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.418653+00', '369b999c-b248-46f9-8366-9694ca1be29d', '00000000-0000-bef0-0000-00000000000e', NULL, NULL, NULL),
	(3, 31, 'p-1', 4, '1d0241cd-c503-40b3-a47d-2dff0e44bc3e', 'ConsentGranted', 1, '{"patient_id":"p-1","to_entity":"patient","to_id":"p-2","target":"exams"}', '2024-11-26 03:00:47.448582+00', 'c4a336e5-849e-4bc0-9292-78674d3e6596', '00000000-0000-bef0-0000-000000000011', NULL, NULL, NULL),
	(3, 32, 'p-1', 5, '64205403-6491-431a-866c-36a2a93e61b6', 'ConsentGranted', 1, '{"patient_id":"p-1","to_entity":"patient","to_id":"p-2","target":"consultations"}', '2024-11-26 03:00:47.448582+00', 'c4a336e5-849e-4bc0-9292-78674d3e6596', '00000000-0000-bef0-0000-000000000011', NULL, NULL, NULL),
	(3, 33, 'p-1', 6, '1251fbb3-337b-431b-a5ac-88736f386c2e', 'ConsentGranted', 1, '{"patient_id":"p-1","to_entity":"patient","to_id":"p-2","target":"conditions"}', '2024-11-26 03:00:47.448582+00', 'c4a336e5-849e-4bc0-9292-78674d3e6596', '00000000-0000-bef0-0000-000000000011', NULL, NULL, NULL),
	(3, 34, 'p-1', 7, 'd909fa1d-8c2c-4f32-99bd-581ffa7934ea', 'ConsentGranted', 1, '{"patient_id":"p-1","to_entity":"patient","to_id":"p-2","target":"er_visits"}', '2024-11-26 03:00:47.448582+00', 'c4a336e5-849e-4bc0-9292-78674d3e6596', '00000000-0000-bef0-0000-000000000011', NULL, NULL, NULL),
	(3, 35, 'p-1', 8, '6bc9a569-f239-4ef3-9d53-363abdb700ba', 'ConsentRevoked', 1, '{"patient_id":"p-1","from_entity":"patient","from_id":"p-2","target":"conditions"}', '2024-11-26 03:00:47.45502+00', 'c7bbbe73-5bd1-4424-a856-e8e1f48dc495', '00000000-0000-bef0-0000-000000000012', NULL, NULL, NULL),
	(1, 1, 'p-2', 1, '94344845-ba8c-4a74-93e2-ddd839d6f107', 'ConsentAsked', 1, '{"patient_id":"p-2","by_entity":"nurse","by_id":"n-1","target":"exams"}', '2024-11-26 03:00:47.464369+00', '32ccd21e-adb6-4cfd-b6d1-7d2e94974b09', '00000000-0000-bef0-0000-000000000013', NULL, NULL, NULL),
	(1, 2, 'p-2', 2, '12e99af6-84e8-4a1f-8911-8eed7925b32c', 'ConsentAsked', 1, '{"patient_id":"p-2","by_entity":"nurse","by_id":"n-1","target":"consultations"}', '2024-11-26 03:00:47.464369+00', '32ccd21e-adb6-4cfd-b6d1-7d2e94974b09', '00000000-0000-bef0-0000-000000000013', NULL, NULL, NULL),
	(1, 3, 'p-2', 3, 'ac6b9ebe-dcdb-4949-8a0f-3db8007675e2', 'ConsentAsked', 1, '{"patient_id":"p-2","by_entity":"nurse","by_id":"n-1","target":"conditions"}', '2024-11-26 03:00:47.464369+00', '32ccd21e-adb6-4cfd-b6d1-7d2e94974b09', '00000000-0000-bef0-0000-000000000013', NULL, NULL, NULL),
	(1, 4, 'p-2', 4, 'cc8c3640-0c86-498b-ae1f-862014836213', 'ConsentAsked', 1, '{"patient_id":"p-2","by_entity":"nurse","by_id":"n-1","target":"er_visits"}', '2024-11-26 03:00:47.464369+00', '32ccd21e-adb6-4cfd-b6d1-7d2e94974b09', '00000000-0000-bef0-0000-000000000013', NULL, NULL, NULL),
	(1, 5, 'p-2', 5, 'd7683e6c-1d02-48bc-b5ad-819474fb592e', 'ConsentGranted', 1, '{"patient_id":"p-2","to_entity":"nurse","to_id":"n-1","target":"consultations"}', '2024-11-26 03:00:47.480172+00', '760d86f1-7419-4ab7-8dba-ca020c18a9a7', '00000000-0000-bef0-0000-000000000014', NULL, NULL, NULL);
INSERT INTO public.events VALUES
	(3, 36, 'p-3', 1, '8871b907-debc-45b5-b382-e9c8301c5ba8', 'ConsentAsked', 1, '{"patient_id":"p-3","by_entity":"doctor","by_id":"d-2","target":"exams"}', '2024-11-26 03:00:47.505823+00', 'ae678784-689c-4b67-af4f-fdb330cc255a', '00000000-0000-bef0-0000-000000000015', NULL, NULL, NULL),
	(3, 37, 'p-3', 2, '41e2dafc-d52d-4ed1-aeb9-c210011efdfb', 'ConsentGranted', 1, '{"patient_id":"p-3","to_entity":"doctor","to_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.515478+00', '1e357be0-9f92-4141-8498-6ea65155a9db', '00000000-0000-bef0-0000-000000000016', NULL, NULL, NULL),
	(3, 38, 'p-3', 3, 'e54a5e0e-27d7-4c6e-88c3-14cdb55c73fb', 'ConsentRevoked', 1, '{"patient_id":"p-3","from_entity":"doctor","from_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.51957+00', 'bb97ca14-91ea-4228-b11c-d42d8fa3d6b8', '00000000-0000-bef0-0000-000000000017', NULL, NULL, NULL),
	(3, 39, 'p-3', 4, '0802ba0d-edde-45ce-b65c-55eda1889133', 'ConsentGranted', 1, '{"patient_id":"p-3","to_entity":"doctor","to_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.527188+00', 'ff12266d-8c1e-462f-92e6-74da0cf70e73', '00000000-0000-bef0-0000-000000000018', NULL, NULL, NULL),
	(3, 40, 'p-long', 28, 'b668bd3e-4f9c-4af2-82a1-51d2e5829aae', 'ConsentGranted', 1, '{"patient_id":"p-long","to_entity":"doctor","to_id":"d-4","target":"consultations"}', '2024-11-26 03:00:47.816985+00', 'e188c274-88b3-40d9-9528-eace60dd3e76', '00000000-0000-bef0-0000-000000000064', NULL, NULL, NULL),
	(3, 41, 'p-1', 9, '137bbadc-cf16-4500-ad48-679da3780419', 'ConsentAsked', 1, '{"patient_id":"p-1","by_entity":"nurse","by_id":"n-2","target":"conditions"}', '2024-11-26 03:00:47.835844+00', '9b6c9aa3-2a5c-4d77-8434-669b5b24ba74', '00000000-0000-bef0-0000-000000000065', NULL, NULL, NULL),
	(3, 42, 'p-3', 5, '08f44932-6dc9-4640-a5ba-1bab442717df', 'ConsentRevoked', 1, '{"patient_id":"p-3","from_entity":"doctor","from_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.842203+00', 'ebc1c99f-e863-4e02-9479-6019abb8fa47', '00000000-0000-bef0-0000-000000000066', NULL, NULL, NULL),
	(0, 1, 'p-4', 1, 'fce0f577-a430-4ffb-90bf-79aba9657138', 'ConsentGranted', 1, '{"patient_id":"p-4","to_entity":"doctor","to_id":"d-1","target":"exams"}', '2024-11-26 03:00:47.858472+00', '3e1fc69f-fb76-4d70-bd43-e53395c51289', '00000000-0000-bef0-0000-000000000067', NULL, NULL, NULL);
INSERT INTO public.partitions VALUES
	(0, NULL, 1, NULL, 1, 1, '2024-11-26 03:00:47.858472+00'),
	(1, NULL, 1, NULL, 5, 5, '2024-11-26 03:00:47.480172+00'),
	(2, NULL, 1, NULL, 0, 0, '-infinity'),
	(3, NULL, 1, NULL, 42, 42, '2024-11-26 03:00:47.842203+00');
INSERT INTO public.snapshots VALUES
	('p-long', 21, 2, '{"granted":{"conditions,consultations,er_visits,exams":{"doctor":["d-3"]}},"requested":{"conditions":{"nurse":["n-1"]}}}', '\xc59a8e395717c03a0ddcbf3ee37d6043', '2024-11-26 03:00:47.35128+00');
ALTER TABLE ONLY public._pogo_migration
    ADD CONSTRAINT _pogo_migration_pkey PRIMARY KEY (migration_hash, schema_name);
ALTER TABLE ONLY public._pogo_version
    ADD CONSTRAINT _pogo_version_pkey PRIMARY KEY (version);
ALTER TABLE ONLY public.command_receipts
    ADD CONSTRAINT command_receipts_command_id_key PRIMARY KEY (command_id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_position_key PRIMARY KEY (partition, "position");
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_stream_version_key UNIQUE (stream_id, stream_version);
ALTER TABLE ONLY public.partitions
    ADD CONSTRAINT partitions_pkey PRIMARY KEY (partition);
ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT snapshots_stream_id_key PRIMARY KEY (stream_id);
ALTER TABLE ONLY public.suspects
    ADD CONSTRAINT suspects_digest_key PRIMARY KEY (digest);
ALTER TABLE ONLY public.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (owner);
CREATE INDEX command_receipts_recorded_at_idx ON public.command_receipts USING btree (recorded_at);
CREATE TRIGGER events_are_facts BEFORE DELETE OR UPDATE OR TRUNCATE ON public.events FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_to_rewrite_the_log();
ALTER TABLE public.events ENABLE ALWAYS TRIGGER events_are_facts;
