-- excess_rights
-- What a role may do in this database beyond what it was granted in its own name: as an owner,
-- a superuser, a member of another role, or because everybody may.
--
--   $1  role  text
--
-- Returns   (excess), one row per right, in words; none where the grants are the whole truth.
SELECT 'ownership of ' || c.relname AS excess
  FROM pg_class c
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
   AND pg_has_role($1::name, c.relowner, 'MEMBER')
UNION ALL
SELECT 'CREATE on the schema public'
 WHERE has_schema_privilege($1::name, 'public', 'CREATE')
UNION ALL
SELECT privilege || ' on ' || c.relname
  FROM pg_class c
 CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES',
                         'TRIGGER']) AS privilege
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
   AND has_table_privilege($1::name, c.oid, privilege)
   AND NOT EXISTS (
        SELECT FROM aclexplode(c.relacl) AS own
         WHERE own.grantee = to_regrole(quote_ident($1)) AND own.privilege_type = privilege)
