"""The worker's role in its database: what it may not do, and what no role is accepted for."""

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Final
from uuid import UUID

import asyncpg
import pytest

from command_service.domain.decisions import Stream
from command_service.domain.patient import INITIAL
from command_service.domain.snapshot import take
from command_service.store.event_store import EventStore
from projection_service.answers.history_queries import Past
from projection_service.parked import discard_parked, list_parked, retry_parked
from projection_service.purge_history import purge_history
from shared.errors import NotConnected, SettingsError
from shared.messages.queries import ConsentHistory
from shared.postgres.database import check_schema, migrate, open_pool
from tests.sandbox import Sandbox
from tests.servers.test_least_privilege import with_login

ROLE: Final = 'clerk of "records"'
PARTITIONS: Final = 4


@pytest.fixture(scope="module")
def role(sandbox: Sandbox) -> Iterator[str]:
    quoted = '"' + ROLE.replace('"', '""') + '"'
    servers = (sandbox.event_store_server, sandbox.read_model_server)
    for server in servers:
        server.execute(f"CREATE ROLE {quoted} LOGIN PASSWORD 'pw'")
    yield quoted
    for server in servers:
        server.execute(f"DROP ROLE {quoted}")


@pytest.fixture(scope="module")
def event_store(sandbox: Sandbox, migrated: str, role: str) -> Iterator[str]:
    url = sandbox.event_store_server.create_database("bound_events", migrated)
    asyncio.run(migrate(url, "command_service", PARTITIONS, worker_role=ROLE))
    yield url
    sandbox.event_store_server.drop_database("bound_events")


@pytest.fixture(scope="module")
def read_model(sandbox: Sandbox, migrated: str, role: str) -> Iterator[str]:
    url = sandbox.read_model_server.create_database("bound_model", migrated)
    asyncio.run(migrate(url, "projection_service", PARTITIONS, worker_role=ROLE))
    yield url
    sandbox.read_model_server.drop_database("bound_model")


def as_worker(url: str) -> str:
    return with_login(url, "clerk%20of%20%22records%22", "pw")


async def refused(url: str, statement: str) -> None:
    connection = await asyncpg.connect(as_worker(url))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


IN_BOTH: Final = (
    "CREATE TABLE mine ()",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "SET session_replication_role = replica",
    "DELETE FROM partitions",
    "INSERT INTO partitions (partition) VALUES (99)",
    "UPDATE partitions SET partition = 99",
    "TRUNCATE partitions",
    "TRUNCATE workers",
    "DROP TABLE workers",
    "ALTER TABLE partitions ADD COLUMN mine int",
    "DELETE FROM _pogo_migration",
    "SELECT lo_import('/etc/passwd')",
    "COPY workers TO PROGRAM 'true'",
)


@pytest.mark.parametrize(
    "statement",
    [
        *IN_BOTH,
        *(
            statement.format(table)
            for table in ("events", "command_receipts")
            for statement in (
                "UPDATE {} SET partition = 1",
                "DELETE FROM {}",
                "TRUNCATE {}",
                "SELECT FROM {} FOR UPDATE",
                "ALTER TABLE {} DISABLE TRIGGER ALL",
                "ALTER TABLE {} OWNER TO CURRENT_USER",
                "CREATE TRIGGER mine BEFORE INSERT ON {} EXECUTE FUNCTION mine()",
                "DROP TABLE {}",
            )
        ),
        "DELETE FROM snapshots",
        "TRUNCATE snapshots",
        "DROP INDEX command_receipts_recorded_at_idx",
        "ALTER TABLE events DISABLE TRIGGER events_are_facts",
        "DROP TRIGGER events_are_facts ON events",
        "DROP FUNCTION refuse_to_rewrite_the_log() CASCADE",
        """CREATE OR REPLACE FUNCTION refuse_to_rewrite_the_log() RETURNS trigger
           LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'""",
        """INSERT INTO events SELECT * FROM events
           ON CONFLICT ON CONSTRAINT events_position_key DO UPDATE SET type = 'x'""",
        """WITH old AS (DELETE FROM events RETURNING *) INSERT INTO events SELECT * FROM old""",
    ],
)
async def test_the_command_worker_may_not(event_store: str, statement: str) -> None:
    await refused(event_store, statement)


@pytest.mark.parametrize(
    "statement",
    [
        *IN_BOTH,
        "DELETE FROM patients",
        "UPDATE patients SET patient_id = 'x'",
        "UPDATE patient_consent SET patient_id = 'x'",
        "DELETE FROM checkpoints",
        "UPDATE checkpoints SET partition = 9",
        "UPDATE parked_events SET event = '{}'",
        "DELETE FROM consent_history",
        "UPDATE consent_history SET began_at = now()",
        "UPDATE history_horizon SET known_since = now()",
        "DELETE FROM history_horizon",
        "DELETE FROM discarded_events",
        *(
            f"{verb} {table}"
            for table in (
                *("patients", "patient_consent", "checkpoints", "parked_events"),
                *("consent_history", "history_horizon"),
            )
            for verb in ("TRUNCATE", "DROP TABLE")
        ),
    ],
)
async def test_the_projection_worker_may_not(read_model: str, statement: str) -> None:
    await refused(read_model, statement)


async def test_the_command_worker_may_keep_and_read_snapshots(event_store: str) -> None:
    pool = await open_pool(as_worker(event_store), name="test", size=1)
    store = EventStore(pool)
    for version in (1, 2):
        await store.write_snapshot(take("p-1", Stream(version, INITIAL)))
    assert await store.read_streams(["p-1"]) == {}, "the log has no such event"
    assert await pool.fetchval("SELECT stream_version FROM snapshots") == 2
    pool.terminate()


async def test_what_the_role_had_more_is_taken_and_doing_it_again_changes_nothing(
    event_store_url: str, role: str
) -> None:
    rights = """SELECT relname, relacl::text FROM pg_class
                 WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"""
    columns = "SELECT attname FROM pg_attribute WHERE attacl::text LIKE '%type%' "
    owner = await asyncpg.connect(event_store_url)
    try:
        await migrate(event_store_url, "command_service", PARTITIONS, worker_role=ROLE)
        before = await owner.fetch(rights)
        await owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        await owner.execute(f"GRANT UPDATE (type) ON events TO {role}")
        await owner.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
        for _ in range(2):
            await migrate(event_store_url, "command_service", PARTITIONS, worker_role=ROLE)
            assert await owner.fetch(rights) == before
        assert await owner.fetch(columns) == []
    finally:
        await owner.close()
    await refused(event_store_url, "UPDATE events SET type = 'x'")
    await refused(event_store_url, "CREATE TABLE mine ()")


@pytest.mark.parametrize(
    ("before", "complaint"),
    [
        ("ALTER ROLE {} SUPERUSER", "it has SUPERUSER and"),
        ("GRANT consent TO {}", "it has membership in consent"),
        ("GRANT consent TO {} ; ALTER ROLE {} NOINHERIT", "it has membership in consent"),
        ("GRANT pg_write_all_data TO {}", "it has membership in pg_write_all_data"),
        ("GRANT UPDATE ON events TO PUBLIC", "it has UPDATE on events beside what it is given"),
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "it has CREATE on the schema public"),
        ("ALTER TABLE workers OWNER TO {}", "it has ownership of table workers"),
    ],
)
async def test_a_role_that_grants_cannot_bind_is_refused(
    event_store_url: str, role: str, before: str, complaint: str
) -> None:
    owner = await asyncpg.connect(event_store_url)
    try:
        await owner.execute(before.format(role, role))
        with pytest.raises(SettingsError, match=complaint):
            await migrate(event_store_url, "command_service", PARTITIONS, worker_role=ROLE)
    finally:
        await owner.execute(f"ALTER TABLE workers OWNER TO consent; REVOKE consent FROM {role}")
        await owner.execute(f"ALTER ROLE {role} NOSUPERUSER INHERIT")
        await owner.execute(f"REVOKE pg_write_all_data FROM {role}")
        await owner.close()


@pytest.mark.parametrize("name", ["nobody-here", "public", "none", "", "x; DROP TABLE events"])
async def test_a_role_that_is_not_there_is_said_in_one_line(
    event_store_url: str, name: str
) -> None:
    with pytest.raises(SettingsError, match="there is no role"):
        await migrate(event_store_url, "command_service", PARTITIONS, worker_role=name)


async def test_a_worker_without_its_grants_is_told_which_verb_gives_them(
    event_store_url: str, role: str
) -> None:
    pool = await open_pool(as_worker(event_store_url), name="test", size=1)
    with pytest.raises(NotConnected, match=r"permission denied.*run `migrate --worker-role`"):
        await check_schema(pool, "command_service")
    pool.terminate()


async def test_parked_events_are_mended_under_the_projection_workers_role(read_model: str) -> None:
    event = {
        "specversion": "1.0", "id": str(UUID(int=1)), "source": "x", "type": "ConsentGranted",
        "subject": "p-1", "time": "2026-11-23T08:00:00Z", "schemaversion": 1, "partition": 0,
        "position": 1, "streamversion": 1, "correlationid": "c", "causationid": str(UUID(int=2)),
        "data": {"patient_id": "p-1", "to_entity": "doctor", "to_id": "d-1", "target": "exams"},
    }  # fmt: skip
    connection = await asyncpg.connect(as_worker(read_model))
    try:
        park = "INSERT INTO parked_events VALUES (0, $1, 'p-1', $2, 'a bug')"
        await connection.execute(park, 1, json.dumps(event))
        revoked = {f"from_{name}": value for name, value in (("entity", "doctor"), ("id", "d-1"))}
        revoked |= {"patient_id": "p-1", "target": "exams"}
        later = {"position": 2, "streamversion": 2, "type": "ConsentRevoked", "data": revoked}
        await connection.execute(park, 2, json.dumps(event | later))
        await connection.execute(park, 3, json.dumps(event | {"data": {}, "position": 3}))
        done = await retry_parked(connection, "p-1")
        assert (done.applied, done.left) == (2, 1)
        assert await discard_parked(connection, "p-1", 3)
        query = ConsentHistory(patient_id="p-1")
        (found,) = await Past(connection).read_history([query])
        assert [one.ended and one.ended.version for one in found.periods] == [2]
        assert await list_parked(connection) == []
    finally:
        await connection.close()


async def test_the_projection_worker_may_not_purge_the_history(read_model: str) -> None:
    connection = await asyncpg.connect(as_worker(read_model))
    try:
        with pytest.raises(SettingsError, match=r"permission denied.*: purge as the owner"):
            await purge_history(connection, timedelta(days=1))
    finally:
        await connection.close()
