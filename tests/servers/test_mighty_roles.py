"""`migrate --worker-role` takes only a role that is nobody and owns nothing."""

from collections.abc import Iterator
from typing import Final

import asyncpg
import pytest

from shared.errors import SettingsError
from shared.postgres.database import migrate
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox

ROLE: Final = "mighty_worker"
ATTRIBUTES: Final = ("CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS")
GROUPS: Final = (
    "pg_execute_server_program",
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_signal_backend",
    "pg_monitor",
    "pg_read_all_data",
    "harmless_group",
)


@pytest.fixture
def role(sandbox: Sandbox, event_store_url: str) -> Iterator[str]:
    server, database = sandbox.event_store_server, event_store_url.rsplit("/", 1)[1]
    server.execute(f"CREATE ROLE {ROLE} LOGIN; CREATE ROLE harmless_group")
    yield ROLE
    server.execute(f"ALTER DATABASE {database} OWNER TO consent")
    server.execute(f"REASSIGN OWNED BY {ROLE} TO consent; DROP OWNED BY {ROLE}", database)
    server.execute(f"DROP ROLE {ROLE}; DROP ROLE harmless_group")


async def bind(url: str) -> None:
    await migrate(url, "command_service", PARTITIONS, worker_role=ROLE)


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_role_that_can_log_in_and_nothing_else_is_bound_again_and_again(
    event_store_url: str, role: str
) -> None:
    await bind(event_store_url)
    await bind(event_store_url)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
async def test_a_role_with_an_attribute_is_refused(
    event_store_url: str, role: str, attribute: str
) -> None:
    await execute(event_store_url, f"ALTER ROLE {role} {attribute}")
    with pytest.raises(SettingsError, match=f"it has {attribute} .*no attribute but LOGIN"):
        await bind(event_store_url)


@pytest.mark.parametrize("group", GROUPS)
async def test_a_member_of_any_other_role_is_refused(
    event_store_url: str, role: str, group: str
) -> None:
    await execute(event_store_url, f"GRANT {group} TO {role}")
    with pytest.raises(SettingsError, match=f"it has membership in {group} .*in no other role"):
        await bind(event_store_url)


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("ALTER DATABASE {database} OWNER TO {role}", "ownership of database {database}"),
        ("ALTER SCHEMA public OWNER TO {role}", "ownership of schema public"),
        (
            "ALTER FUNCTION refuse_to_rewrite_the_log() OWNER TO {role}",
            r"ownership of function refuse_to_rewrite_the_log\(\)",
        ),
        ("CREATE SCHEMA own AUTHORIZATION {role}", "ownership of schema own"),
        ("GRANT CREATE ON DATABASE {database} TO {role}", "CREATE on the database"),
        ("GRANT EXECUTE ON FUNCTION pg_read_file(text) TO {role}", "a right to function pg_read"),
        ("GRANT SELECT ON pg_authid TO {role}", "a right to table pg_authid"),
        (
            "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {role}",
            "a right to default privileges",
        ),
    ],
)
async def test_a_role_that_owns_or_may_do_anything_beside_is_refused(
    event_store_url: str, role: str, statement: str, complaint: str
) -> None:
    names = {"role": role, "database": event_store_url.rsplit("/", 1)[1]}
    await execute(event_store_url, statement.format(**names))
    with pytest.raises(SettingsError, match="it has " + complaint.format(**names)):
        await bind(event_store_url)


async def test_a_right_to_set_a_parameter_is_refused(event_store_url: str, role: str) -> None:
    """With this one it could switch all triggers off, as far as its grants go."""
    grant = f"GRANT SET ON PARAMETER session_replication_role TO {role}"
    try:
        await execute(event_store_url, grant)
    except asyncpg.PostgresSyntaxError:
        pytest.skip("PostgreSQL has such rights since version 15")
    with pytest.raises(SettingsError, match="a right to parameter session_replication_role"):
        await bind(event_store_url)
