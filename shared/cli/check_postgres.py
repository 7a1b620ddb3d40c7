"""What `check` finds out about a service's database."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

import asyncpg

from shared.cli.check_clocks import clock_findings
from shared.cli.check_results import Finding, Needs, Ownership, is_too_old
from shared.errors import ConsentError
from shared.errors.connection import DATABASES
from shared.errors.text import said_by
from shared.postgres.connection import Pool
from shared.postgres.database import check_partitions, check_schema, open_pool
from shared.postgres.statements import statement
from shared.postgres.surroundings import check_surroundings, too_few_connections

OLDEST_POSTGRES: Final = (13,)
DATABASE_ERRORS: Final = (
    ConsentError,
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)
_GRANT: Final = re.compile(r"GRANT ([^']+?)\s+ON\s+(?!SCHEMA)([^']+?)\s+TO %I")
_PRIVILEGE: Final = re.compile(r"([A-Z]+)(?: \(([^)]+)\))?")
_MISSING_RIGHTS: Final = statement("shared.postgres", "missing_rights")
_READ_OWNERSHIP: Final = statement("shared.postgres", "read_ownership")


async def database_findings(needs: Needs) -> AsyncIterator[Finding]:
    """Look at the server, the schema, the worker's rights and the clocks."""
    try:
        pool = await _open(needs)
    except DATABASE_ERRORS as error:
        yield Finding("database", False, f"not reached: {said_by(error)}")
        return
    try:
        server = await _server(pool, needs)
        yield server
        if not server.ok:
            return
        async for finding in clock_findings(pool, needs.package):
            yield finding
        schema = await _tried("schema", "up to date", lambda: check_schema(pool, needs.package))
        yield schema
        if schema.ok:
            yield await _rights(pool, needs.package)
            count = needs.settings.consent_partitions
            yield await _tried("partitions", f"{count}", lambda: check_partitions(pool, count))
            owned = [lease for lease in await _ownership(pool) if lease.owner is not None]
            yield Finding("leases", True, f"{len(owned)} of {count} partitions owned")
    finally:
        pool.terminate()


async def ownership(needs: Needs) -> list[Ownership]:
    """Tell who owns what, where the database can be asked."""
    try:
        pool = await _open(needs)
    except DATABASE_ERRORS:
        return []
    try:
        return await _ownership(pool)
    except asyncpg.PostgresError:
        return []
    finally:
        pool.terminate()


def server_finding(version: str) -> Finding:
    """Judge the server's version."""
    oldest = ".".join(map(str, OLDEST_POSTGRES))
    if is_too_old(version, OLDEST_POSTGRES):
        return Finding("database", False, f"PostgreSQL {version} is too old: use {oldest} or newer")
    return Finding("database", True, f"PostgreSQL {version}")


async def _server(pool: Pool, needs: Needs) -> Finding:
    """Look at the server, and at what it gives a session."""
    try:
        async with pool.acquire() as session:
            given = await check_surroundings(session, needs.database_url, DATABASES[needs.package])
            version = await session.fetchval("SHOW server_version")
    except DATABASE_ERRORS as error:
        return Finding("database", False, f"{said_by(error)}")
    few = too_few_connections(given)
    return Finding("database", False, few) if few else server_finding(version)


async def _open(needs: Needs) -> Pool:
    return await open_pool(needs.database_url, name="check", size=1, package=needs.package)


async def _ownership(pool: Pool) -> list[Ownership]:
    rows = await pool.fetch(_READ_OWNERSHIP)
    return [
        Ownership(row["partition"], row["owner"] if row["is_leased"] else None, row["epoch"])
        for row in rows
    ]


async def _rights(pool: Pool, package: str) -> Finding:
    """Look whether this role has what `migrate --worker-role` would give it."""
    tables, privileges, columns = zip(*granted_to_worker(package), strict=True)
    rows = await pool.fetch(_MISSING_RIGHTS, tables, privileges, columns)
    if rows:
        missing = ", ".join(row["missing"] for row in rows)
        remedy = "run `migrate --worker-role` with the role that it connects as"
        return Finding("database rights", False, f"the role lacks {missing}: {remedy}")
    return Finding("database rights", True, "all that the worker needs")


def granted_to_worker(package: str) -> Iterator[tuple[str, str, str | None]]:
    """Read what a worker needs off the statement that grants it: table, privilege, column."""
    for granted, relations in _GRANT.findall(statement(package, "grant_to_worker")):
        for relation in relations.split(","):
            for privilege, columns in _PRIVILEGE.findall(granted):
                for column in columns.split(",") if columns else (None,):
                    yield relation.strip(), privilege, column and column.strip()


async def _tried(name: str, detail: str, look: Callable[[], Awaitable[None]]) -> Finding:
    try:
        await look()
    except ConsentError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, detail)
