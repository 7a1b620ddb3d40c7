-- read_longest_user
-- Who has used one of these tables for longest, in one transaction.
--
--   $1  names  text[]
--
-- Returns   (pid, application_name, since); no row where nobody uses them now.
SELECT a.pid, a.application_name, date_trunc('second', a.xact_start) AS since
  FROM pg_stat_activity a
 WHERE a.pid <> pg_backend_pid()
   AND a.pid IN (
        SELECT l.pid
          FROM pg_locks l
          JOIN pg_class c ON c.oid = l.relation
         WHERE l.granted AND c.relname = ANY ($1::text[]))
 ORDER BY a.xact_start
 LIMIT 1
