"""The databases' two roles are made by who is no superuser, as on a server that others manage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.sandbox import Sandbox
from tests.sandbox.servers import DatabaseServer
from tests.support.compose import Uncontained, read_compose

MANAGER: Final = "managing"


@pytest.fixture
def managed(sandbox: Sandbox) -> Iterator[DatabaseServer]:
    server = sandbox.event_store_server
    server.execute(f"CREATE ROLE {MANAGER} LOGIN CREATEROLE CREATEDB PASSWORD '{MANAGER}'")
    server.create_database("managed")
    server.execute(f"ALTER DATABASE managed OWNER TO {MANAGER}")
    yield server
    server.drop_database("managed")
    for role in ("consent_worker", "consent_owner", MANAGER):
        server.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_roles_are_made_and_their_passwords_changed_without_a_superuser(
    managed: DatabaseServer, tmp_path: Path
) -> None:
    made = Uncontained(read_compose()["services"])
    login = {"PGHOST": managed.host, "PGPORT": str(managed.port), "PGDATABASE": "managed"}
    for password in ("first", "second"):
        file = tmp_path / "password"
        file.write_text(f"{password}\n")
        by_file = {"WORKER_PASSWORD": "", "WORKER_PASSWORD_FILE": str(file)}
        done = made.run_roles(
            "event_store_roles", **login, PGUSER=MANAGER, PGPASSWORD=MANAGER, **by_file
        )
        assert done.returncode == 0, done.stderr
        server = f"{managed.host}:{managed.port}/managed"
        owner = {"EVENT_STORE_URL": f"postgresql://consent_owner:demo-owner@{server}"}
        done = made.run("migrate_event_store", **owner)
        assert done.returncode == 0, done.stderr
        worker = {
            "EVENT_STORE_URL": f"postgresql://consent_worker:{password}@{server}",
            "RABBITMQ_URL": "amqp://nobody@127.0.0.1:1/",
        }
        done = made.run("command_service", "python", "-m", "command_service", "check", **worker)
        assert "✓ database rights" in done.stdout, done.stdout
