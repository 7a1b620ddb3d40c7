-- read_rights
-- Who owns the read model, and what is missing to rebuild it.
--
-- Returns   one row: the owner of its tables; whether this session may act as the owner; whether
--           the owner may create a schema in this database, and tables in the schema public.
SELECT tableowner AS owner, current_database() AS database,
       pg_has_role(current_user, tableowner, 'MEMBER') AS is_owner,
       has_database_privilege(tableowner, current_database(), 'CREATE') AS may_make_schema,
       has_schema_privilege(tableowner, 'public', 'CREATE') AS may_make_tables
  FROM pg_tables
 WHERE schemaname = 'public' AND tablename = 'checkpoints'
