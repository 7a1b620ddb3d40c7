-- write_comparison
-- Write the statement that compares a table of the read model with its shadow.
--
--   $1  name     text     the table's
--   $2  ignored  text[]   columns that may differ
--
-- Returns   one row: the statement. Its parameter $1 says how many differences to return at most,
--           bigint; it returns (total, key, live, shadow): how many differences there are, and
--           of each the row's key and both rows as JSON, null where there is none.
WITH compared AS (
    SELECT a.attname AS name, a.attnum AS number, a.attnum = ANY (i.indkey) AS is_key,
           CASE a.atttypid WHEN 'json'::regtype THEN '::text' ELSE '' END AS cast_
      FROM pg_attribute a
      JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
     WHERE a.attrelid = format('public.%I', $1::text)::regclass
       AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ALL ($2::text[])
)
SELECT format('SELECT count(*) OVER () AS total, jsonb_build_object(%1$s) AS key, '
              'to_jsonb(live) - %2$L::text[] AS live, to_jsonb(shadow) - %2$L::text[] AS shadow '
              'FROM public.%3$I live FULL JOIN consent_shadow.%3$I shadow USING (%4$s) '
              'WHERE (%5$s) IS DISTINCT FROM (%6$s) ORDER BY %4$s LIMIT $1::bigint',
              string_agg(format('%L, %I', name, name), ', ' ORDER BY number) FILTER (WHERE is_key),
              $2::text[], $1::text,
              string_agg(quote_ident(name), ', ' ORDER BY number) FILTER (WHERE is_key),
              string_agg(format('live.%I%s', name, cast_), ', ' ORDER BY number),
              string_agg(format('shadow.%I%s', name, cast_), ', ' ORDER BY number))
  FROM compared
