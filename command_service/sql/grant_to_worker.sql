-- grant_to_worker
-- Give the command worker's role what its statements need, and take whatever else it has.
-- It adds to the log and never changes it; of a partition it moves all but the number.
-- The role's name is what `name_worker_role` said in this transaction.
DO $$
DECLARE
    role text := current_setting('consent.worker_role');
    command text;
BEGIN
    FOREACH command IN ARRAY ARRAY[
        'REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I',
        'REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM %I',
        'REVOKE ALL ON SCHEMA public FROM %I',
        'GRANT USAGE ON SCHEMA public TO %I',
        'GRANT SELECT ON _pogo_migration TO %I',
        'GRANT SELECT, UPDATE (owner, epoch, leased_until, position, published_position,
                               recorded_at) ON partitions TO %I',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO %I',
        'GRANT SELECT, INSERT ON events, command_receipts TO %I',
        'GRANT SELECT, INSERT, DELETE ON ends TO %I',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON suspects TO %I',
        'GRANT SELECT, INSERT, UPDATE ON snapshots TO %I',
        'GRANT SELECT, UPDATE (virtual_host) ON log_identity TO %I',
        'GRANT SELECT, INSERT ON generations TO %I'
    ] LOOP
        EXECUTE format(command, role);
    END LOOP;
END
$$
