#!/bin/sh
# Runs once, when a database server is first started: one role owns the schema, another one works.
set -eu
psql --set ON_ERROR_STOP=1 --no-psqlrc --quiet --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set owner_password="$OWNER_PASSWORD" --set worker_password="$WORKER_PASSWORD" <<'SQL'
CREATE ROLE consent_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE consent_worker LOGIN PASSWORD :'worker_password';
ALTER DATABASE :"DBNAME" OWNER TO consent_owner;
SQL
