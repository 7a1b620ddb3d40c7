-- grant_to_worker
-- Give the projection worker's role what its statements need, and take whatever else it has.
-- The same role may run the verbs `parked ...`.
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
        'GRANT SELECT, UPDATE (owner, epoch, leased_until) ON partitions TO %I',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO %I',
        'GRANT SELECT, INSERT, UPDATE (position, event_id, generation, set_back_since)
            ON checkpoints TO %I',
        'GRANT SELECT, INSERT ON followed_log TO %I',
        'GRANT SELECT, INSERT, UPDATE (version) ON patients TO %I',
        'GRANT SELECT, INSERT, UPDATE (permissions, requested, ends, requested_ends), DELETE
            ON patient_consent TO %I',
        'GRANT SELECT, INSERT, DELETE ON parked_events TO %I',
        'GRANT SELECT, INSERT ON consent_history TO %I',
        'GRANT UPDATE (ended_version, ended_at, ended_command, ended_issuer, ended_cause)
            ON consent_history TO %I',
        'GRANT SELECT ON history_horizon TO %I',
        'GRANT INSERT ON discarded_events TO %I'
    ] LOOP
        EXECUTE format(command, role);
    END LOOP;
END
$$
