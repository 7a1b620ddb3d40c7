#!/bin/sh
# One role owns the schema of a database, another one works: makes both, and sets their passwords.
# Again it changes nothing but the passwords. It needs psql and its PGHOST, PGDATABASE, PGUSER and
# PGPASSWORD, of who may create roles, and OWNER_PASSWORD and WORKER_PASSWORD, or a file of each
# (…_FILE). No superuser is needed, but for a database that somebody else owns.
set -eu
for name in PGPASSWORD OWNER_PASSWORD WORKER_PASSWORD; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        eval "export $name=\"\$(cat \"\$file\")\""
    fi
done
# psql reads the passwords from the environment, since a command line can be read by others.
psql --set ON_ERROR_STOP=1 --no-psqlrc --quiet --tuples-only <<'SQL'
\getenv owner_password OWNER_PASSWORD
\getenv worker_password WORKER_PASSWORD
SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['consent_owner', 'consent_worker']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
ALTER ROLE consent_owner PASSWORD :'owner_password';
ALTER ROLE consent_worker PASSWORD :'worker_password';
SELECT 'GRANT consent_owner TO CURRENT_USER' -- who made a role is not yet one that may act as it
FROM pg_roles
WHERE rolname = current_user AND NOT rolsuper
\gexec
ALTER DATABASE :"DBNAME" OWNER TO consent_owner;
SQL
echo "the roles consent_owner and consent_worker have their passwords"
