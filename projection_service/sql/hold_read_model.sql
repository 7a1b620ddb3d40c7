-- hold_read_model
-- Keep everybody out of the read model until this transaction ends: in the mode SHARE whoever
-- changes it, in the mode ACCESS EXCLUSIVE whoever reads it as well.
-- Which tables and which mode are what `consent.tables` and `consent.mode` say in this transaction:
-- LOCK takes no parameters.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY string_to_array(current_setting('consent.tables'), ',') LOOP
        EXECUTE format('LOCK TABLE public.%I IN %s MODE', name, current_setting('consent.mode'));
    END LOOP;
END
$$
