-- read_server
-- Which PostgreSQL server this is, and on which timeline it writes: a standby that takes over begins
-- a new one, so that the primary before it can be told.
--
-- Returns   one row: (server, timeline).
SELECT (pg_control_system()).system_identifier::text AS server,
       ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer AS timeline
