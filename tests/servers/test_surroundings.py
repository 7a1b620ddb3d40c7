"""What a database is, lets a role do, or is behind: served, or named with the remedy."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg
import pytest
from aio_pika.abc import AbstractIncomingMessage

from shared.errors.connection import WORKER_CONNECTIONS
from shared.postgres.database import connect_once
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.servers import DatabaseServer
from tests.servers.test_least_privilege import with_login
from tests.support.amqp import open_client
from tests.support.deployment import SERVICES, Deployment, ServiceName, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch

SETTING: Final = {"command_service": "EVENT_STORE_URL", "projection_service": "READ_MODEL_URL"}
MANY_SESSIONS_S: Final = 10
ROLE: Final = "narrow_worker"


def server_of(sandbox: Sandbox, service: str) -> DatabaseServer:
    command = service == "command_service"
    return sandbox.event_store_server if command else sandbox.read_model_server


def url_of(deployment: Deployment, service: str) -> str:
    command = service == "command_service"
    return deployment.event_store_url if command else deployment.read_model_url


@contextmanager
def database_in(server: DatabaseServer, encoding: str) -> Iterator[str]:
    name = f"in_{encoding.lower()}"
    made = f"""CREATE DATABASE "{name}" ENCODING '{encoding}' TEMPLATE template0"""
    server.execute(f"{made} LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        yield server.url(name)
    finally:
        server.drop_database(name)


async def waits_for(worker: Worker, missing: str, *words: str) -> None:
    """Return once the worker's readiness names what is missing, in these words."""

    async def named() -> bool:
        status, body = worker.get("/health/ready")
        troubles = json.loads(body)["troubles"] if status == 503 else []
        return any(
            one["missing"] == missing and all(word in one["reason"] for word in words)
            for one in troubles
        )

    await eventually(named)


def the_line(text: str) -> str:
    """Return the one line of an error, after whatever was logged."""
    assert "Traceback" not in text
    *logged, said = text.splitlines()
    assert all(one.startswith("{") for one in logged)
    return said


@pytest.mark.parametrize("service", SERVICES)
def test_an_encoding_that_can_not_hold_every_id_is_refused_by_migrate_check_and_worker(
    deployment: Deployment, sandbox: Sandbox, service: ServiceName
) -> None:
    with database_in(server_of(sandbox, service), "LATIN1") as url:
        more = {SETTING[service]: url}
        for verb in ("migrate", "run"):
            done = deployment.run(service, verb, **more)
            assert done.returncode == 2
            line = the_line(done.stderr)
            assert "is in the encoding LATIN1" in line
            assert "ENCODING 'UTF8' TEMPLATE template0" in line
        told = deployment.run(service, "check", **more)
        assert told.returncode == 1
        assert "database: the " in told.stdout
        assert "is in the encoding LATIN1" in told.stdout


@contextmanager
def a_vhost(sandbox: Sandbox) -> Iterator[str]:
    """Give a virtual host that no log has yet."""
    yield sandbox.broker.create_vhost("surroundings")
    sandbox.broker.delete_vhost("surroundings")


async def test_a_database_that_takes_bytes_as_they_come_is_served(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    with database_in(sandbox.event_store_server, "SQL_ASCII") as url, a_vhost(sandbox) as broker:
        deployment.event_store_url, deployment.rabbitmq_url = url, broker
        for verb in ("migrate", "topology"):
            assert deployment.run("command_service", verb).returncode == 0
        worker = deployment.start("command_service")
        worker.wait_ready()
        async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
            for patient in ("p-1", "p-é", "p-日本"):
                assert (await client.command("GrantConsent", patient))["status"] == "accepted"
                again = await client.command("GrantConsent", patient)
                assert again["error"] == "consent_already_granted"
        worker.stop()


@pytest.fixture
def narrow(sandbox: Sandbox, deployment: Deployment) -> Iterator[dict[str, str]]:
    """Give both URLs for a worker's role, which the tests restrict."""
    urls: dict[str, str] = {}
    for service in SERVICES:
        server_of(sandbox, service).execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'pw'")
        bound = deployment.run(service, "migrate", "--worker-role", ROLE)
        assert bound.returncode == 0, bound.stderr
        urls[service] = with_login(url_of(deployment, service), ROLE, "pw")
    yield urls
    deployment.close()
    for service in SERVICES:
        server = server_of(sandbox, service)
        server.execute(f"DROP OWNED BY {ROLE}", url_of(deployment, service).rsplit("/", 1)[1])
        server.execute(f"DROP ROLE {ROLE}")


@pytest.mark.parametrize("service", SERVICES)
async def test_a_worker_takes_as_many_connections_as_is_documented_and_says_so_if_there_are_fewer(
    deployment: Deployment, sandbox: Sandbox, narrow: dict[str, str], service: ServiceName
) -> None:
    server, url = server_of(sandbox, service), narrow[service]

    def limit(connections: int) -> None:
        server.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT {connections}")

    limit(WORKER_CONNECTIONS - 1)
    told = await asyncio.to_thread(deployment.run, service, "check", **{SETTING[service]: url})
    assert told.returncode == 1
    few = f"allows {WORKER_CONNECTIONS - 1} connections, and each worker takes {WORKER_CONNECTIONS}"
    assert f"the role {ROLE} {few}" in told.stdout

    limit(3)
    worker = deployment.start(service, **{SETTING[service]: url})
    needs = f"each worker takes {WORKER_CONNECTIONS}"
    await waits_for(worker, "database", "no connection left", needs)

    limit(WORKER_CONNECTIONS)
    worker.wait_ready()

    async def all_taken() -> bool:
        (row,) = await fetch(
            url_of(deployment, service),
            "SELECT count(*) AS n FROM pg_stat_activity WHERE usename = 'narrow_worker'",
        )
        return bool(row["n"] == WORKER_CONNECTIONS)

    await eventually(all_taken)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_read_only_database_is_waited_for_and_named(
    deployment: Deployment, sandbox: Sandbox, service: ServiceName
) -> None:
    name = url_of(deployment, service).rsplit("/", 1)[1]
    server = server_of(sandbox, service)
    server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    worker = deployment.start(service)
    await waits_for(worker, "database", "read-only: ", "target_session_attrs=read-write")
    migrated = await asyncio.to_thread(deployment.run, service, "migrate")
    assert migrated.returncode == 2
    assert the_line(migrated.stderr).startswith("error: read-only: the ")
    told = await asyncio.to_thread(deployment.run, service, "check")
    assert told.returncode == 1
    assert "database: read-only: the " in told.stdout
    server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    worker.wait_ready()


async def test_a_search_path_and_an_isolation_level_of_the_role_or_the_database_change_nothing(
    sandbox: Sandbox, deployment: Deployment
) -> None:
    """Every table is in `public`, whoever looks."""
    deployment.rabbitmq_url = sandbox.broker.create_vhost("with_a_path")
    for server, setting in (
        (sandbox.event_store_server, "event_store_url"),
        (sandbox.read_model_server, "read_model_url"),
    ):
        url = server.create_database("with_a_path")
        server.execute("CREATE SCHEMA app", "with_a_path")
        server.execute("ALTER DATABASE with_a_path SET search_path = app, pg_catalog")
        server.execute(
            "ALTER DATABASE with_a_path SET default_transaction_isolation = serializable"
        )
        setattr(deployment, setting, url)
    deployment.prepare()
    deployment.start_both()
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        accepted = await client.command("GrantConsent", "p-1")
        held = await client.query(
            "HasConsent",
            patient_id="p-1",
            entity_name="doctor",
            entity_id="d-1",
            permission="exams",
            min_version=accepted["version"],
        )
    assert held["has_consent"] is True
    for service in SERVICES:
        told = await asyncio.to_thread(deployment.run, service, "check")
        assert told.returncode == 0, told.stdout
    rebuilt = await asyncio.to_thread(deployment.run, "projection_service", "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    for url in (deployment.event_store_url, deployment.read_model_url):
        assert await fetch(url, "SELECT FROM pg_tables WHERE schemaname = 'app'") == []
    deployment.close()
    for server in (sandbox.event_store_server, sandbox.read_model_server):
        server.drop_database("with_a_path")


def test_tables_that_were_made_under_another_search_path_are_found_missing(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    name = deployment.event_store_url.rsplit("/", 1)[1]
    sandbox.event_store_server.execute(
        "CREATE SCHEMA app; ALTER TABLE partitions SET SCHEMA app", name
    )
    done = deployment.run("command_service", "migrate")
    assert done.returncode == 2
    assert "are not in the schema public" in the_line(done.stderr)
    assert "ALTER TABLE … SET SCHEMA public" in done.stderr


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.patient_id LIKE '{who}' THEN
        RAISE EXCEPTION 'no' USING ERRCODE = 'untranslatable_character';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refusing BEFORE INSERT ON command_receipts FOR EACH ROW EXECUTE FUNCTION refuse();
"""
"""An error about values, as a database gives it whose encoding lacks a character."""


async def test_what_the_database_says_of_every_command_is_counted_against_none(
    deployment: Deployment,
) -> None:
    connection = await asyncpg.connect(deployment.event_store_url)
    worker = deployment.start("command_service")
    worker.wait_ready()
    await connection.execute(REFUSE.format(who="%"))
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        sent = [
            await client.send(
                "GrantConsent",
                {"patient_id": f"p-{n}", "to_entity": "doctor", "to_id": "d", "target": "exams"},
            )
            for n in range(40)
        ]
        await waits_for(worker, "database", "refuses any command, not only one", "22P05")
        assert await connection.fetchval("SELECT count(*) FROM suspects") == 0
        await asyncio.sleep(MANY_SESSIONS_S)  # the pause is the stimulus: many sessions fail
        assert await connection.fetchval("SELECT count(*) FROM suspects") == 0
        await connection.execute("DROP TRIGGER refusing ON command_receipts")
        outcomes = [await client.reply(one, within=60) for one in sent]
        assert {one["status"] for one in outcomes} == {"accepted"}
        assert await client.dead_letters() == []
    await connection.close()


async def test_what_the_database_says_of_one_command_is_still_counted_against_it(
    deployment: Deployment,
) -> None:
    connection = await asyncpg.connect(deployment.event_store_url)
    await connection.execute(REFUSE.format(who="p-bad"))
    await connection.close()
    deployment.start("command_service").wait_ready()
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        body = {"to_entity": "doctor", "to_id": "d-1", "target": "exams"}
        bad = await client.send("GrantConsent", {"patient_id": "p-bad", **body})
        good = [
            await client.send("GrantConsent", {"patient_id": f"p-{n}", **body}) for n in range(8)
        ]

        async def set_aside() -> bool:
            letters.extend(await client.dead_letters())
            return bool(letters)

        letters: list[AbstractIncomingMessage] = []
        await eventually(set_aside, within=90)
        outcomes = [await client.reply(one, within=60) for one in good]
        assert {one["status"] for one in outcomes} == {"accepted"}
        assert [one.correlation_id for one in letters] == [bad]


async def test_a_transaction_that_an_operators_verb_leaves_open_ends_by_itself(
    event_store_url: str,
) -> None:
    connection = await connect_once(event_store_url, "command_service", name="test")
    assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "1min"
    await connection.close()
