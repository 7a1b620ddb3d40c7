#!/bin/sh
# Prints the secrets that the base expects, with new passwords: sh make_secrets.sh | kubectl apply -f -
# Once: printed again they are others. The servers' operators make the administrators' themselves.
set -eu
namespace=${1:-consent}

new_password() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

begin() { # name, type
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata: { name: %s, namespace: %s }\ntype: %s\nstringData:\n' \
        "$1" "$namespace" "$2"
}

entry() { # key, value
    printf '  %s: "%s"\n' "$1" "$2"
}

for user in topology command-worker projection-worker autoscaler; do
    password=$(new_password)
    begin "broker-$user" Opaque
    entry password "$password"
    entry url "amqp://$user:$password@rabbitmq:5672/"
    if [ "$user" = autoscaler ]; then
        entry management-url "http://$user:$password@rabbitmq.$namespace.svc:15672/"
    fi
done

for cluster in event-store read-model; do
    password=$(new_password)
    database=$(echo "$cluster" | tr - _)
    begin "$cluster-worker" kubernetes.io/basic-auth
    entry username consent_worker
    entry password "$password"
    entry uri "postgresql://consent_worker:$password@$cluster-rw:5432/$database"
done
