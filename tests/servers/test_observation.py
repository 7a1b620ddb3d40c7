"""What is stuck, frozen or not right is seen: in a metric, and in the readiness that names it."""

import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import asyncpg
import pytest

from tests.chaos.links import Disorder, Link, open_wires
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, body_of, open_client
from tests.support.deployment import Deployment, Worker, open_deployment
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(300)

WITHIN_S: Final = 60.0
UNHEARD: Final = Disorder("silence", ("up",))
"""The worker still receives; nothing that it sends arrives."""
DEAF_AND_DUMB: Final = Disorder("silence")


@dataclass
class Running:
    deployment: Deployment
    command: Worker
    projection: Worker
    to_broker: Link
    """What the command worker reaches the broker by."""
    to_event_store: Link


@pytest.fixture(scope="module")
def standing(sandbox: Sandbox, migrated: str) -> Iterator[Running]:
    with (
        open_wires() as wires,
        open_deployment(
            sandbox, "observed", partitions=PARTITIONS, prepared_from=migrated
        ) as deployment,
    ):
        done = deployment.run("command_service", "topology")
        assert done.returncode == 0, done.stderr
        to_broker = wires.lay(deployment.rabbitmq_url)
        to_event_store = wires.lay(deployment.event_store_url)
        command = deployment.start(
            "command_service", RABBITMQ_URL=to_broker.url, EVENT_STORE_URL=to_event_store.url
        )
        projection = deployment.start("projection_service")
        yield Running(deployment, command, projection, to_broker, to_event_store)


@pytest.fixture
async def running(standing: Running) -> Running:
    """Wait until both workers are well, and all has been seen to be level."""
    await eventually(lambda: well(standing), within=WITHIN_S)
    return standing


@pytest.fixture
async def client(running: Running) -> AsyncIterator[Client]:
    async with open_client(running.deployment.rabbitmq_url, PARTITIONS) as connected:
        yield connected


async def well(running: Running) -> bool:
    workers = (running.command, running.projection)
    return all(worker.get("/health/ready")[0] == 200 for worker in workers) and not any(
        (
            running.command.metric("consent_publish_backlog_seconds"),
            running.projection.metric("consent_projection_lag_seconds"),
        )
    )


def troubles(worker: Worker) -> dict[str, str]:
    status, body = worker.get("/health/ready")
    if status != 503:
        return {}
    return {one["missing"]: one["reason"] for one in json.loads(body)["troubles"]}


def says(worker: Worker, missing: str, *words: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        found = troubles(worker)
        return missing in found and all(word in found[missing] for word in words)

    return look


def above(
    worker: Worker, name: str, least: float, having: str = ""
) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return worker.metric(name, having) > least

    return look


@asynccontextmanager
async def locked(url: str, table: str) -> AsyncIterator[None]:
    """Hold all rows of a table, as somebody's forgotten transaction would."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT FROM {table} FOR UPDATE")
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def frozen(worker: Worker) -> AsyncIterator[None]:
    worker.send(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send(signal.SIGCONT)


async def grows(worker: Worker, name: str) -> None:
    """Wait until a gauge is some seconds, and then more."""
    await eventually(above(worker, name, 1), within=WITHIN_S)
    await eventually(above(worker, name, worker.metric(name) + 1), within=WITHIN_S)


async def test_a_projector_that_waits_for_a_lock_is_seen_in_its_lag(
    running: Running, client: Client
) -> None:
    async with locked(running.deployment.read_model_url, "checkpoints"):
        await client.command("AskConsent", "p-locked")
        await grows(running.projection, "consent_projection_lag_seconds")
        assert running.projection.metric("consent_projection_lag_events") == 1
    await eventually(lambda: well(running), within=WITHIN_S)


async def test_a_frozen_projection_worker_is_seen_by_the_command_worker(
    running: Running, client: Client
) -> None:
    async with frozen(running.projection):
        await client.command("AskConsent", "p-frozen")
        waits = above(running.command, "consent_queue_messages", 0, "consent.projection.")
        await eventually(waits, within=WITHIN_S)
        assert running.projection.get("/metrics")[0] == 0


async def test_a_publisher_whose_confirms_never_come_is_seen_in_the_backlog(
    running: Running, client: Client
) -> None:
    running.to_broker.disturb(UNHEARD)
    await client.send("AskConsent", body_of("AskConsent", "p-unheard"))
    await grows(running.command, "consent_publish_backlog_seconds")
    assert running.command.metric("consent_publish_backlog_events") == 1
    await eventually(says(running.command, "broker", "does not answer"), within=WITHIN_S)
    running.to_broker.disturb(None)
    await eventually(lambda: well(running), within=WITHIN_S)


async def test_a_command_worker_that_waits_for_a_lock_is_seen_in_what_it_has_in_hand(
    running: Running, client: Client
) -> None:
    async with locked(running.deployment.event_store_url, "partitions"):
        sent = await client.send("AskConsent", body_of("AskConsent", "p-in-hand"))
        await grows(running.command, "consent_oldest_in_hand_seconds")
        await eventually(says(running.command, "leases", "not renewed for"), within=WITHIN_S)
    assert (await client.reply(sent, within=WITHIN_S))["status"] == "accepted"

    async def nothing_is_in_hand() -> bool:
        return running.command.metric("consent_oldest_in_hand_seconds", "commands") == 0

    await eventually(nothing_is_in_hand)


async def test_a_frozen_command_worker_is_seen_by_the_projection_worker(
    running: Running, client: Client
) -> None:
    async with frozen(running.command):
        await client.send("AskConsent", body_of("AskConsent", "p-command"))
        waits = above(running.projection, "consent_queue_messages", 0, "consent.commands.")
        await eventually(waits, within=WITHIN_S)
        await grows(running.projection, "consent_projection_lag_seconds")  # nobody tells the heads


async def test_a_database_that_answers_nothing_is_named(running: Running) -> None:
    running.to_event_store.disturb(DEAF_AND_DUMB)
    await eventually(says(running.command, "database", "does not answer"), within=WITHIN_S)
    running.to_event_store.disturb(None)


async def test_a_queue_that_was_deleted_is_named_whoever_reads_it(
    running: Running, sandbox: Sandbox
) -> None:
    vhost = quote(running.deployment.rabbitmq_url.rsplit("/", 1)[1], safe="")
    sandbox.broker.api("DELETE", f"/queues/{vhost}/consent.projection.1")
    for worker in (running.command, running.projection):
        deleted = says(worker, "topology", "consent.projection.1", "topology`")
        await eventually(deleted, within=WITHIN_S)
    done = running.deployment.run("command_service", "topology")
    assert done.returncode == 0, done.stderr


async def test_an_exchange_that_was_deleted_is_named(running: Running, sandbox: Sandbox) -> None:
    vhost = quote(running.deployment.rabbitmq_url.rsplit("/", 1)[1], safe="")
    sandbox.broker.api("DELETE", f"/exchanges/{vhost}/consent.events")
    deleted = says(running.command, "topology", "the exchange consent.events is missing")
    await eventually(deleted, within=WITHIN_S)
    done = running.deployment.run("command_service", "topology")
    assert done.returncode == 0, done.stderr


OLDER: Final = "DELETE FROM _pogo_migration WHERE migration_id LIKE '0003-%'"
NEWER: Final = """INSERT INTO _pogo_migration
    SELECT (jsonb_populate_record(one, '{"migration_id": "9999-later", "migration_hash": "x"}')).*
      FROM _pogo_migration one LIMIT 1"""


async def test_a_schema_of_another_version_is_named(running: Running) -> None:
    for url, worker in (
        (running.deployment.event_store_url, running.command),
        (running.deployment.read_model_url, running.projection),
    ):
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("CREATE TABLE kept AS SELECT * FROM _pogo_migration")
            await connection.execute(NEWER)
            await eventually(says(worker, "schema", "newer", "9999-later"), within=WITHIN_S)
            await connection.execute(OLDER)
            await eventually(says(worker, "schema", "older", "run `migrate`"), within=WITHIN_S)
            await connection.execute("TRUNCATE _pogo_migration")
            await connection.execute("INSERT INTO _pogo_migration SELECT * FROM kept")
        finally:
            await connection.close()
        await worker.logs("trouble.seen")
    await eventually(lambda: well(running), within=WITHIN_S)
    await running.command.logs("trouble.passed")


async def test_in_the_end_both_workers_are_well_and_are_still_the_same_processes(
    running: Running,
) -> None:
    for worker in (running.command, running.projection):
        await eventually(has_everything(worker), within=WITHIN_S)
        assert worker.process.poll() is None


def has_everything(worker: Worker) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        partitions = [worker.metric(f"consent_partition_{what}") for what in ("owned", "leased")]
        return partitions == [PARTITIONS] * 2 and worker.metric("consent_ready") == 1

    return look
