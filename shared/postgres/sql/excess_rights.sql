-- excess_rights
-- What a role may do in this database beyond what it was granted in its own name: by what it is,
-- as a member of another role, as an owner, by grants of other kinds, or because everybody may.
-- A member is refused even if it inherits nothing, since SET ROLE is open to it.
--
--   $1  role  text
--
-- Returns   (excess), one row per right, in words, the mightiest first; none where the grants of
--           `grant_to_worker` are the whole truth.
SELECT attribute AS excess
  FROM pg_roles
 CROSS JOIN unnest(ARRAY['SUPERUSER', 'CREATEROLE', 'CREATEDB', 'REPLICATION', 'BYPASSRLS'],
                   ARRAY[rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls])
       AS has (attribute, it)
 WHERE rolname = $1::name AND it
UNION ALL
SELECT 'membership in ' || pg_get_userbyid(roleid)
  FROM (SELECT DISTINCT roleid FROM pg_auth_members
         WHERE member = to_regrole(quote_ident($1))) AS joined
UNION ALL
SELECT CASE deptype WHEN 'o' THEN 'ownership of ' ELSE 'a right to ' END
       || pg_describe_object(classid, objid, objsubid)
  FROM pg_shdepend
  LEFT JOIN pg_class AS relation ON classid = 'pg_class'::regclass AND relation.oid = objid
 WHERE refclassid = 'pg_authid'::regclass AND refobjid = to_regrole(quote_ident($1))
   AND dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND (deptype = 'o'
        OR deptype = 'a' AND relation.relnamespace = 'pg_catalog'::regnamespace
        OR deptype = 'a' AND classid NOT IN ('pg_class'::regclass, 'pg_namespace'::regclass,
                                             'pg_database'::regclass, 'pg_type'::regclass))
UNION ALL
SELECT 'CREATE on the database'
 WHERE has_database_privilege($1::name, current_database(), 'CREATE')
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
