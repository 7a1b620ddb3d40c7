"""Statements that lock several rows lock them in one order, so that none ever waits in a circle."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncpg
import pytest

from projection_service.projections.changes import Changes, Move
from projection_service.read_model import ReadModel
from shared.postgres.connection import Connection, Pool
from shared.postgres.statements import statement
from tests.conftest import PARTITIONS
from tests.support.eventually import eventually

ALL = list(range(PARTITIONS))
STATEMENTS: dict[str, tuple[str, Sequence[object]]] = {
    "keep_leases": ("shared.postgres", ["me", 60.0, True, 1]),
    "release_partitions": ("shared.postgres", ["me", None]),
    "mark_published": ("command_service", [ALL[::-1], [1] * PARTITIONS, [9] * PARTITIONS]),
}
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@pytest.fixture
async def holder(event_store_url: str) -> AsyncIterator[Connection]:
    """Lock rows on a connection that gives up where it would have to wait."""
    connection = await asyncpg.connect(event_store_url, server_settings={"lock_timeout": "500"})
    yield connection
    connection.terminate()


@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_rows_of_partitions_are_locked_in_their_order(
    event_store_pool: Pool, holder: Connection, name: str
) -> None:
    package, arguments = STATEMENTS[name]
    await event_store_pool.execute("UPDATE partitions SET owner = 'me', epoch = 1")
    for partition in (0, 1):  # now the first rows are the last ones in the table
        await event_store_pool.execute(
            "UPDATE partitions SET position = 9 WHERE partition = $1", partition
        )
    async with holder.transaction():
        await holder.execute("SELECT FROM partitions WHERE partition = 0 FOR UPDATE")
        running = asyncio.create_task(
            event_store_pool.execute(statement(package, name), *arguments)
        )
        await eventually(lambda: event_store_pool.fetchval(WAITING))
        await holder.execute("SELECT FROM partitions FOR UPDATE")
    await running


async def test_a_partition_is_locked_before_its_checkpoint(
    read_model_pool: Pool, read_model_url: str
) -> None:
    model = ReadModel(read_model_pool)
    await read_model_pool.execute("UPDATE partitions SET epoch = 1")
    assert (await model.open_checkpoint(0)).position == 0
    retrying = await asyncpg.connect(read_model_url, server_settings={"lock_timeout": "500"})
    async with retrying.transaction():
        await retrying.execute("SELECT FROM partitions WHERE partition = 0 FOR UPDATE")
        projecting = asyncio.create_task(model.project(Changes(moves={0: Move(1, 0, 1)})))
        await eventually(lambda: read_model_pool.fetchval(WAITING))
        assert (await ReadModel(retrying).open_checkpoint(0)).position == 0
    await projecting
    await retrying.close()
    assert (await model.open_checkpoint(0)).position == 1


def test_no_statement_updates_several_partitions_without_locking_them_in_order() -> None:
    packages: Sequence[str] = ("shared.postgres", "command_service", "projection_service")
    files = [
        file for package in packages for file in Path(*package.split("."), "sql").glob("*.sql")
    ]
    updates = [file for file in files if "UPDATE partitions" in file.read_text()]
    assert len(updates) > 4
    for file in updates:
        text = file.read_text()
        one_row = "WHERE partition = $1" in text
        assert one_row or "ORDER BY partition" in text or "ORDER BY p.partition" in text, file
