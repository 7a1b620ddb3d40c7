-- missing_rights
-- Which of these rights the current role lacks.
--
--   $1  tables      text[]
--   $2  privileges  text[]
--   $3  columns     text[]   as many; null where the right is to the whole table
--
-- Returns   (missing), a row per right, in the order given.
SELECT concat(privilege, ' on ', relation, '.' || "column") AS missing
  FROM unnest($1::text[], $2::text[], $3::text[])
       WITH ORDINALITY AS wanted (relation, privilege, "column", number)
 WHERE NOT CASE WHEN "column" IS NULL THEN has_table_privilege(relation, privilege)
                ELSE has_column_privilege(relation, "column", privilege) END
 ORDER BY number
