-- The log cannot be rewritten, not even by its owner
-- depends: 0002-events

-- migrate: apply

CREATE FUNCTION refuse_to_rewrite_the_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log cannot be rewritten: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER events_are_facts
    BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_rewrite_the_log();

ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_facts;

-- migrate: rollback

DROP TRIGGER events_are_facts ON events;
DROP FUNCTION refuse_to_rewrite_the_log();
