-- read_surroundings
-- What a session was given by the server, the database and the role.
--
-- Returns   one row: encoding, is_read_only, process (of the server, which serves this session),
--           role, role_limit, database_limit, server_limit: how many connections each allows;
--           null where it sets no limit. A superuser's role has none.
SELECT getdatabaseencoding()::text AS encoding,
       current_setting('transaction_read_only')::boolean AS is_read_only,
       pg_backend_pid() AS process,
       session_user::text AS role,
       (SELECT nullif(rolconnlimit, -1) FROM pg_roles
         WHERE rolname = session_user AND NOT rolsuper) AS role_limit,
       (SELECT nullif(datconnlimit, -1) FROM pg_database
         WHERE datname = current_database()) AS database_limit,
       current_setting('max_connections')::integer
       - current_setting('superuser_reserved_connections')::integer
       - coalesce(current_setting('reserved_connections', true), '0')::integer AS server_limit
