-- switch_to_shadow
-- Put the shadow's tables in the place of the read model's, with the same grants, and let every
-- worker begin anew from the checkpoints that stand then. The caller holds the read model.
-- Which tables is what `consent.tables` says in this transaction: no statement here takes
-- parameters. A view or anything else that hangs on a table makes this fail, and nothing changes.
DO $$
DECLARE
    names CONSTANT text[] := string_to_array(current_setting('consent.tables'), ',');
    command text;
BEGIN
    PERFORM FROM public.partitions ORDER BY partition FOR UPDATE;
    UPDATE public.partitions SET epoch = epoch + 1;

    FOR command IN
        SELECT format('GRANT %s%s ON consent_shadow.%I TO %s%s', own.privilege_type,
                      '(' || quote_ident(own.attname) || ')', own.relname,
                      CASE own.grantee WHEN 0 THEN 'PUBLIC' ELSE own.grantee::regrole::text END,
                      CASE WHEN own.is_grantable THEN ' WITH GRANT OPTION' END)
          FROM (SELECT c.relname, NULL::name AS attname, (aclexplode(c.relacl)).*
                  FROM pg_class c
                 WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (names)
                 UNION ALL
                SELECT c.relname, a.attname, (aclexplode(a.attacl)).*
                  FROM pg_class c
                  JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
                 WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (names)) own
    LOOP
        EXECUTE command;
    END LOOP;

    EXECUTE 'DROP TABLE ' || (SELECT string_agg(format('public.%I', name), ', ')
                                FROM unnest(names) AS name);
    FOR command IN
        SELECT format('ALTER TABLE consent_shadow.%I SET SCHEMA public', name)
          FROM unnest(names) AS name
    LOOP
        EXECUTE command;
    END LOOP;

    FOR command IN
        SELECT format('DROP TABLE consent_shadow.%I', tablename)
          FROM pg_tables WHERE schemaname = 'consent_shadow'
    LOOP
        EXECUTE command;
    END LOOP;
    DROP SCHEMA consent_shadow;
END
$$
