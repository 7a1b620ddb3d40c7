-- name_worker_role
-- Tell `grant_to_worker`, in the same transaction, whom it is about: GRANT takes no parameters.
--
--   $1  role  text
--
-- Returns   one row: the role; none where there is no such role.
SELECT set_config('consent.worker_role', rolname, true) FROM pg_roles WHERE rolname = $1::text
