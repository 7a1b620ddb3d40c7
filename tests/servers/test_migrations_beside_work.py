"""Migrations of large tables: commands are answered, and no session is lost, while they run."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from tests.support.amqp import Client
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch

pytestmark = pytest.mark.timeout(400)

INDEX: Final = "command_receipts_recorded_at_idx"
MIGRATION: Final = "0006-receipts-by-time"
END_BUILDERS: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index"
"""As the server does itself, once it looks whether its client is there."""
MAKE_RECEIPTS: Final = """
    INSERT INTO command_receipts
        (command_id, fingerprint, patient_id, partition, stream_version, event_count, recorded_at)
    SELECT gen_random_uuid(), '\\x00', 'p', 0, 1, 0, now() - n * interval '1 second'
    FROM generate_series(1, 2000000) n
"""
ONE_RECEIPT: Final = """
    INSERT INTO command_receipts
        (command_id, fingerprint, patient_id, partition, stream_version, event_count, recorded_at)
    VALUES (gen_random_uuid(), '\\x00', 'p', 0, 1, 0, now())
"""


async def forget_index(deployment: Deployment) -> None:
    """Put the event store back to before the index."""
    await fetch(deployment.event_store_url, f"DROP INDEX {INDEX}")
    await forget(deployment, MIGRATION)


async def forget(deployment: Deployment, migration: str) -> None:
    forgotten = f"DELETE FROM _pogo_migration WHERE migration_id = '{migration}'"  # noqa: S608
    await fetch(deployment.event_store_url, forgotten)


async def is_valid(deployment: Deployment) -> list[bool]:
    asked = f"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{INDEX}')"  # noqa: S608
    return [row["indisvalid"] for row in await fetch(deployment.event_store_url, asked)]


def building(deployment: Deployment) -> Callable[[], Awaitable[list[asyncpg.Record]]]:
    """Whether an index is being built, by the server's own account."""
    return lambda: fetch(
        deployment.event_store_url,
        "SELECT phase FROM pg_stat_progress_create_index WHERE datname = current_database()",
    )


async def nobody_builds(deployment: Deployment) -> bool:
    return not await building(deployment)()


@asynccontextmanager
async def others_work(deployment: Deployment, statement: str) -> AsyncIterator[None]:
    """Keep a transaction open that has done this."""
    connection = await asyncpg.connect(deployment.event_store_url)
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        await connection.close()


async def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    out, err = await asyncio.to_thread(process.communicate, timeout=200)
    return process.returncode, out + err


@pytest.fixture
def worker(deployment: Deployment) -> Worker:
    started = deployment.start("command_service")
    started.wait_ready()
    return started


async def test_commands_are_decided_while_an_index_of_the_receipts_is_built(
    deployment: Deployment, client: Client, worker: Worker
) -> None:
    """It waits for a transaction that has written there; the commands don't wait for it."""
    await forget_index(deployment)
    async with others_work(deployment, ONE_RECEIPT):
        process = deployment.begin("command_service", "migrate")
        await eventually(building(deployment))
        for number in range(5):
            reply = await client.command("GrantConsent", f"p-{number}")
            assert reply["status"] == "accepted"
        assert await building(deployment)()
    assert await ended(process) == (0, f"applied {MIGRATION}\n")
    assert await is_valid(deployment) == [True]
    assert worker.metric("consent_sessions_lost_total") == 0


async def test_two_million_receipts_get_an_index_without_a_session_lost(
    deployment: Deployment, client: Client, worker: Worker
) -> None:
    await forget_index(deployment)
    await fetch(deployment.event_store_url, MAKE_RECEIPTS)
    numbers = count()

    async def decide() -> None:
        reply = await client.command("GrantConsent", f"p-{next(numbers)}")
        assert reply["status"] == "accepted"

    async with others_work(deployment, ONE_RECEIPT):  # or it might be over before it is seen
        process = deployment.begin("command_service", "migrate")
        await eventually(building(deployment))
        await decide()
    while await building(deployment)():
        await decide()
    assert (await ended(process))[0] == 0
    assert await is_valid(deployment) == [True]
    assert worker.metric("consent_sessions_lost_total") == 0


async def test_an_index_that_a_killed_migration_left_unfinished_is_built_anew(
    deployment: Deployment,
) -> None:
    await forget_index(deployment)
    async with others_work(deployment, ONE_RECEIPT):
        process = deployment.begin("command_service", "migrate")
        await eventually(building(deployment))
        process.kill()
        await ended(process)
        await fetch(deployment.event_store_url, END_BUILDERS)
        await eventually(lambda: nobody_builds(deployment))

    assert await is_valid(deployment) == [False]
    done = deployment.run("command_service", "migrate")
    assert done.stdout == f"applied {MIGRATION}\n"
    assert await is_valid(deployment) == [True]


async def test_a_migration_makes_way_where_others_use_its_table(
    deployment: Deployment, client: Client, worker: Worker
) -> None:
    """Else all who come later would wait behind it, as long as those take."""
    await fetch(deployment.event_store_url, "DROP TRIGGER events_are_facts ON events")
    await fetch(deployment.event_store_url, "DROP FUNCTION refuse_to_rewrite_the_log()")
    await forget(deployment, "0003-log-cannot-be-rewritten")
    async with others_work(deployment, "LOCK TABLE events IN ROW EXCLUSIVE MODE"):
        process = deployment.begin("command_service", "migrate")
        assert process.stderr
        line = await asyncio.to_thread(process.stderr.readline)
        assert line.startswith("0003-log-cannot-be-rewritten makes way for a long query")
        reply = await client.command("GrantConsent", "p-1")
        assert reply["status"] == "accepted"
    assert (await ended(process))[0] == 0
    assert worker.metric("consent_sessions_lost_total") == 0


async def test_a_rebuild_does_not_wait_for_a_backup_before_it_begins(
    deployment: Deployment,
) -> None:
    """Its tables are new, so that its indexes need wait for nobody."""
    deployment.start_both()
    connection = await asyncpg.connect(deployment.read_model_url)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("SELECT count(*) FROM checkpoints")
            done = deployment.run("projection_service", "rebuild", "--dry-run")
            assert done.returncode == 0, done.stderr
    finally:
        await connection.close()


MIGRATIONS: Final = [
    Path(str(one))
    for package in ("shared.postgres", "command_service", "projection_service")
    for one in (files(package) / "migrations").iterdir()
    if one.name.endswith(".sql")
]


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.stem)
def test_an_index_on_a_table_that_may_be_large_is_built_beside_the_work(path: Path) -> None:
    text = path.read_text(encoding="utf-8").partition("-- migrate: rollback")[0]
    made = set(re.findall(r"CREATE TABLE (\w+)", text))
    for how, name, table in re.findall(
        r"CREATE (?:UNIQUE )?INDEX (CONCURRENTLY )?(\w+)\s+ON (\w+)", text
    ):
        if table not in made:
            assert how, f"{name}: CREATE INDEX CONCURRENTLY"
            assert "-- transaction: false" in text
            assert f"DROP INDEX CONCURRENTLY IF EXISTS {name};" in text, (
                "an attempt may have failed"
            )
            assert "ALTER TABLE" not in text, "in a migration of its own"
