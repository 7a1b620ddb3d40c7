"""Migrations: from nothing, from the schema before, again, at once, and with wrong settings."""

import asyncio
from collections.abc import Iterator
from importlib.resources import files
from itertools import count
from pathlib import Path

import asyncpg
import pytest
from pogo_core.util.migrate import apply

from projection_service.read_model import TABLES
from shared.errors import SchemaError, SettingsError
from shared.postgres.database import check_schema, compare_schema, migrate, open_pool
from tests.sandbox import Sandbox

_NUMBERS = count(1)
FOLDERS = [files(package) / "migrations" for package in ("shared.postgres", "command_service")]
ALL = [
    "0001-partitions",
    "0002-events",
    "0003-log-cannot-be-rewritten",
    "0004-suspects",
    "0005-snapshots",
    "0006-receipts-by-time",
    "0007-presence",
    "0008-log-identity",
    "0009-ends",
]


@pytest.fixture
def empty(sandbox: Sandbox) -> Iterator[str]:
    name = f"empty_{next(_NUMBERS)}"
    yield sandbox.event_store_server.create_database(name)
    sandbox.event_store_server.drop_database(name)


async def tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()
    return {row["tablename"] for row in rows if not row["tablename"].startswith("_")}


async def test_an_empty_database_gets_the_whole_schema_once(empty: str) -> None:
    assert await migrate(empty, "command_service", 8) == ALL
    assert await migrate(empty, "command_service", 8) == []
    own = {"events", "command_receipts", "ends", "suspects", "snapshots"}
    own |= {"log_identity", "generations"}
    assert await tables(empty) == {"partitions", "workers"} | own


async def test_the_read_model_gets_its_own_tables(empty: str) -> None:
    await migrate(empty, "projection_service", 8)
    assert await tables(empty) == {
        "partitions",
        "workers",
        "checkpoints",
        "patients",
        "patient_consent",
        "parked_events",
        "consent_history",
        "history_horizon",
        "discarded_events",
        "followed_log",
    }


async def test_a_rebuild_knows_every_table_that_follows_from_the_log(empty: str) -> None:
    await migrate(empty, "projection_service", 8)
    decided_by_workers_and_operators = {
        "partitions", "workers", "discarded_events", "followed_log",
    }  # fmt: skip
    assert await tables(empty) == {*TABLES} | decided_by_workers_and_operators


async def test_migrations_started_at_the_same_time_wait_for_each_other(empty: str) -> None:
    applied = await asyncio.gather(*(migrate(empty, "command_service", 8) for _ in range(4)))
    assert sorted(applied, key=len) == [[], [], [], ALL]


async def test_the_schema_before_is_brought_up_to_date_and_keeps_its_events(
    empty: str, tmp_path: Path
) -> None:
    for name in ALL[:-1]:
        source = next(one for one in FOLDERS if (one / f"{name}.sql").is_file())
        (tmp_path / f"{name}.sql").write_text((source / f"{name}.sql").read_text())
    connection = await asyncpg.connect(empty)
    await apply(connection, tmp_path, schema_name="public")
    await connection.execute("INSERT INTO partitions (partition) VALUES (0)")
    await connection.execute(
        """INSERT INTO events VALUES (0, 1, 'p', 1, gen_random_uuid(), 'ConsentGranted', 1, '{}',
           now(), 'c', gen_random_uuid(), NULL, NULL, NULL)"""
    )
    assert await migrate(empty, "command_service", 1) == ALL[-1:]
    assert await connection.fetchval("SELECT count(*) FROM events") == 1
    with pytest.raises(asyncpg.RestrictViolationError):
        await connection.execute("DELETE FROM events")
    await connection.close()


async def test_a_worker_of_this_version_refuses_an_older_schema(empty: str) -> None:
    pool = await open_pool(empty, name="test", size=1)
    with pytest.raises(SchemaError, match="run `migrate` first"):
        await check_schema(pool, "command_service")
    await migrate(empty, "command_service", 8)
    await check_schema(pool, "command_service")
    await pool.execute("DELETE FROM _pogo_migration WHERE migration_id = $1", ALL[-1])
    with pytest.raises(SchemaError, match="older than this version"):
        await check_schema(pool, "command_service")
    pool.terminate()


async def test_a_schema_that_a_newer_version_made_is_recognised(empty: str) -> None:
    await migrate(empty, "projection_service", 8)
    pool = await open_pool(empty, name="test", size=1)
    await compare_schema(pool, "projection_service")
    await pool.execute("INSERT INTO _pogo_migration VALUES ('x', '9999-later', now(), 'public')")
    with pytest.raises(SchemaError, match=r"newer than this version.*\(9999-later\)"):
        await compare_schema(pool, "projection_service")
    pool.terminate()


@pytest.mark.parametrize(
    ("own", "other", "setting"),
    [
        ("command_service", "projection_service", "EVENT_STORE_URL"),
        ("projection_service", "command_service", "READ_MODEL_URL"),
    ],
)
async def test_the_database_of_the_other_service_is_recognised_and_left_alone(
    empty: str, own: str, other: str, setting: str
) -> None:
    await migrate(empty, other, 8)
    wrong = rf"{setting} leads to the database of another service \(it has 0002-"
    with pytest.raises(SettingsError, match=wrong):
        await migrate(empty, own, 8)
    pool = await open_pool(empty, name="test", size=1)
    with pytest.raises(SettingsError, match=wrong):
        await check_schema(pool, own)
    await compare_schema(pool, other)
    pool.terminate()


async def test_the_number_of_partitions_is_fixed_by_the_first_migration(empty: str) -> None:
    await migrate(empty, "command_service", 8)
    with pytest.raises(SettingsError, match="set CONSENT_PARTITIONS=8"):
        await migrate(empty, "command_service", 16)
