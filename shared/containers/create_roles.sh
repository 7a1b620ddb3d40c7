#!/bin/sh
# Runs once, when a database server is first started: one role owns the schema, another one works.
set -eu
# psql reads the passwords from the environment, since a command line can be read by others.
psql --set ON_ERROR_STOP=1 --no-psqlrc --quiet --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv owner_password OWNER_PASSWORD
\getenv worker_password WORKER_PASSWORD
CREATE ROLE consent_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE consent_worker LOGIN PASSWORD :'worker_password';
ALTER DATABASE :"DBNAME" OWNER TO consent_owner;
SQL
