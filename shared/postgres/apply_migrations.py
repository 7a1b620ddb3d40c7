"""Applies migrations beside workers that go on with their work."""

import asyncio
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import asyncpg
from pogo_core.migration import Migration, topological_sort
from pogo_core.util import sql

from shared.errors import SchemaError
from shared.postgres.connection import Connection

WAIT_FOR_TABLE_MS: Final = 1_000
MAKE_WAY_S: Final = 3.0
SCHEMA: Final = "public"

Tell = Callable[[str], None]


async def apply_missing(connection: Connection, package: str, tell: Tell) -> None:
    """Apply those of a package's migrations that are missing; raises SchemaError.

    Each is a transaction, but for those that build an index beside work that goes on: such a one
    first removes what an attempt before it may have left.
    """
    with as_file(files(package) / "migrations") as folder:
        await sql.ensure_pogo_sync(connection)
        found = await sql.read_migrations(Path(folder), connection, schema_name=SCHEMA)
        for migration in topological_sort([one.load() for one in found]):
            if not migration.applied:
                await _apply_in_the_end(connection, migration, tell)


async def _apply_in_the_end(connection: Connection, migration: Migration, tell: Tell) -> None:
    """Apply a migration; where others use its tables it makes way, and tries again.

    Behind whoever waits for a table for itself wait all who come later: while a long query or a
    backup goes on, all work would stand still.
    """
    while not await _is_applied(connection, migration):
        tell(f"{migration.id} makes way for a long query, or a backup, of a table that it changes")
        await asyncio.sleep(MAKE_WAY_S)


async def _is_applied(connection: Connection, migration: Migration) -> bool:
    """Apply a migration, unless a table can't be had soon."""
    try:
        if migration.use_transaction:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {WAIT_FOR_TABLE_MS}")
                await _apply(connection, migration)
        else:
            await _apply(connection, migration)
    except asyncpg.LockNotAvailableError:
        return False
    except asyncpg.PostgresError as error:
        raise SchemaError(
            f"{migration.id} failed: {error}: mend that and run `migrate` again; workers of the "
            "version before may go on meanwhile"
        ) from error
    return True


async def _apply(connection: Connection, migration: Migration) -> None:
    await migration.apply(connection)
    await sql.migration_applied(connection, migration.id, migration.hash, schema_name=SCHEMA)
