"""Opens a service's database and brings it to the schema that this version needs."""

import asyncio
from collections.abc import Mapping, Sequence, Set
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import asyncpg
from pogo_core.migration import Migration, read_sql_migration, topological_sort

from shared.errors import NotConnected, SchemaError, SettingsError
from shared.errors.connection import DATABASES, SOME_DATABASE
from shared.postgres.apply_migrations import Tell, apply_missing
from shared.postgres.connection import BY_INDEX, Connection, Pool, Queryable, dial
from shared.postgres.statements import statement
from shared.postgres.surroundings import check_surroundings

MIGRATION_LOCK: Final = 0xC045E47
"""One number for everybody who migrates a consent database, so that they wait for each other."""
STATEMENTS: Final = 5
"""Where the library's reader of a migration returns those that apply it."""
BESIDE_WORK: Final = "CONCURRENTLY "
LOOK_AGAIN_S: Final = 0.2
COMMAND_TIMEOUT_S: Final = 30

_COUNT_PARTITIONS = statement("shared.postgres", "count_partitions")
_MAKE_PARTITIONS = statement("shared.postgres", "make_partitions")
_NAME_WORKER_ROLE = statement("shared.postgres", "name_worker_role")
_EXCESS_RIGHTS = statement("shared.postgres", "excess_rights")
_MISSING_TABLE: Final = "the database has no consent schema yet: run `migrate` first"


async def open_pool(
    url: str,
    *,
    name: str,
    size: int,
    package: str = "",
    settings: Mapping[str, str] | None = None,
) -> Pool:
    """Open a pool of `size` connections at once, so that a lack of room shows at the start.

    `settings` are PostgreSQL's own, such as `search_path`, for each of its sessions.
    Raises NotConnected and SettingsError as `dial` does.
    """
    server = DATABASES.get(package, SOME_DATABASE)
    wanted = {**BY_INDEX, **(settings or {})}

    async def connect(dsn: str | None = None, **passed: Any) -> Connection:  # noqa: ANN401
        return await dial(dsn or url, server, name=name, settings=wanted, **passed)

    pool: Pool = await asyncpg.create_pool(
        url,
        connect=connect,
        min_size=size,
        max_size=size,
        command_timeout=COMMAND_TIMEOUT_S,
        reset=_nothing_to_reset,
    )
    return pool


async def connect_once(url: str, package: str, *, name: str) -> Connection:
    """Open one connection to a service's database; raises NotConnected as `open_pool` does."""
    return await dial(url, DATABASES[package], name=name)


async def _nothing_to_reset(_: object) -> None:
    """Spare a round trip for each statement: no session state is ever changed on the pool."""


async def migrate(
    url: str,
    package: str,
    partitions: int,
    *,
    worker_role: str | None = None,
    tell: Tell = lambda _: None,
) -> list[str]:
    """Apply what is missing of the shared and the package's migrations; return their names.

    Everything happens under one lock, which belongs to the connection: it ends with a process that
    is killed. `tell` hears what it waits for.
    With `worker_role`, that role has in the end what the package's worker needs, and no more.
    Raises SettingsError where the database was made with another number of partitions, or is in
    another encoding than UTF-8, or the role can't be bound.
    """
    connection = await connect_once(url, package, name="migrate")
    try:
        await check_surroundings(connection, url, DATABASES[package])
        await _take_lock(connection)
        before = await _applied(connection)
        _refuse_another_service(before, package)
        for source in ("shared.postgres", package):
            await apply_missing(connection, source, tell)
        await _make_partitions(connection, partitions)
        await check_partitions(connection, partitions)
        if worker_role is not None:
            await _grant(connection, package, worker_role)
        return sorted(await _applied(connection) - before)
    finally:
        await connection.close()


async def _take_lock(connection: Connection) -> None:
    """Wait for the lock, but never inside a statement.

    Who builds an index beside the work waits for every statement that was there before, and so
    would for one that waits for the lock, which the builder holds.
    """
    while not await _has_lock(connection):  # noqa: ASYNC110 - another process has the lock
        await asyncio.sleep(LOOK_AGAIN_S)


async def _has_lock(connection: Connection) -> bool:
    return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", MIGRATION_LOCK))


async def _make_partitions(connection: Connection, partitions: int) -> None:
    try:
        await connection.execute(_MAKE_PARTITIONS, partitions)
    except asyncpg.UndefinedTableError as error:  # they were made under another search_path
        raise SettingsError(
            f"the tables are not in the schema public, where they are looked for ({error}): "
            "move each of them there, ALTER TABLE … SET SCHEMA public"
        ) from None


async def check_partitions(connection: Queryable, partitions: int) -> None:
    """Compare the setting with what the database was made with.

    Raises SchemaError before the first migration, SettingsError where the numbers differ.
    """
    try:
        recorded = await connection.fetchval(_COUNT_PARTITIONS)
    except asyncpg.UndefinedTableError:
        raise SchemaError(_MISSING_TABLE) from None
    if recorded == 0:
        raise SchemaError(_MISSING_TABLE)
    if recorded != partitions:
        raise SettingsError(
            f"CONSENT_PARTITIONS is {partitions}, but this deployment was made with {recorded}: "
            f"set CONSENT_PARTITIONS={recorded}"
        )


async def check_schema(connection: Queryable, package: str) -> None:
    """Raise SchemaError where a migration that this version needs is missing."""
    _refuse_older(await _recorded(connection), package)


async def compare_schema(connection: Queryable, package: str) -> None:
    """Raise SchemaError where the schema is not exactly that of this version.

    Under a newer one a worker goes on, until it is replaced; it is only not ready any more.
    """
    recorded = await _recorded(connection)
    _refuse_older(recorded, package)
    unknown = recorded - _needed(package)
    if unknown:
        raise SchemaError(
            f"the schema is newer than this version: replace the worker ({max(unknown)})"
        )


def _refuse_older(recorded: Set[str], package: str) -> None:
    _refuse_another_service(recorded, package)
    missing = _needed(package) - recorded
    if missing:
        raise SchemaError(f"the schema is older than this version: run `migrate` ({min(missing)})")


def _refuse_another_service(recorded: Set[str], package: str) -> None:
    """Raise SettingsError where only another service has migrated: the URLs may be swapped."""
    own, others = _known(package), recorded - _needed(package)
    if others and not recorded & own:
        server = DATABASES[package]
        raise SettingsError(
            f"{server.setting} leads to the database of another service (it has {min(others)}): "
            f"give it the URL of {server.name}"
        )


async def _recorded(connection: Queryable) -> set[str]:
    """Read which migrations were applied; raises SchemaError before the first one."""
    try:
        rows = await connection.fetch("SELECT migration_id FROM public._pogo_migration")
    except asyncpg.UndefinedTableError:
        raise SchemaError(_MISSING_TABLE) from None
    except asyncpg.InsufficientPrivilegeError as error:
        role = "`migrate --worker-role` with the role that it connects as"
        raise NotConnected(f"the worker lacks a right ({error}): run {role}") from None
    return {row["migration_id"] for row in rows}


async def copy_schema(connection: Connection, package: str, partitions: int) -> None:
    """Make the package's tables, empty, in the first schema of the connection's search path.

    They are made as `migrate` makes them, so that names, indexes and storage are the same, but for
    waiting for others, since nobody uses them yet; nothing of it is recorded.
    """
    with as_file(files("shared.postgres")) as shared, as_file(files(package)) as own:
        paths = [*(shared / "migrations").glob("*.sql"), *(own / "migrations").glob("*.sql")]
        migrations = [Migration(path.stem, path, set()) for path in paths]
        for migration in migrations:
            migration.load()
        for migration in topological_sort(migrations):
            for sql in read_sql_migration(migration.path)[STATEMENTS]:
                await connection.execute(sql.replace(BESIDE_WORK, ""))
    await connection.execute(_MAKE_PARTITIONS, partitions)


async def _grant(connection: Connection, package: str, role: str) -> None:
    """Give a role what the worker needs; a worker at work never sees it missing."""
    async with connection.transaction():
        if await connection.fetchval(_NAME_WORKER_ROLE, role) is None:
            raise SettingsError(
                f"there is no role {role}: CREATE ROLE … LOGIN PASSWORD …, then migrate again"
            )
        await connection.execute(statement(package, "grant_to_worker"))
        excess = await connection.fetch(_EXCESS_RIGHTS, role)
        if excess:
            raise SettingsError(_too_mighty(role, [row["excess"] for row in excess]))


def _too_mighty(role: str, excess: Sequence[str]) -> str:
    more = f" and {len(excess) - 1} more" if len(excess) > 1 else ""
    return (
        f"the role {role} can't be bound, it has {excess[0]}{more} beside what it is given here: "
        "give the worker a role that owns nothing, is in no other role and has no attribute but "
        "LOGIN; revoke what everybody (PUBLIC) has"
    )


async def _applied(connection: Connection) -> set[str]:
    if await connection.fetchval("SELECT to_regclass('public._pogo_migration')") is None:
        return set()
    rows = await connection.fetch("SELECT migration_id FROM public._pogo_migration")
    return {row["migration_id"] for row in rows}


@cache
def _needed(package: str) -> frozenset[str]:
    return frozenset(_known("shared.postgres") | _known(package))


def _known(package: str) -> set[str]:
    folder = files(package) / "migrations"
    return {Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".sql")}
