"""The shadow: a second read model, in a schema of its own, that takes the first one's place."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import UUID

import asyncpg

from projection_service.parked import retry_parked
from projection_service.read_model import TABLES, ReadModel
from shared.errors import NotNow, SettingsError
from shared.errors.connection import DATABASES
from shared.event_log.set_back import LogPlace
from shared.postgres.connection import Connection, Pool, Queryable, Session
from shared.postgres.database import (
    check_partitions,
    compare_schema,
    connect_once,
    copy_schema,
    open_pool,
)
from shared.postgres.statements import statement
from shared.postgres.surroundings import check_surroundings

SCHEMA: Final = "consent_shadow"
REBUILD_LOCK: Final = 0xC045E48
"""One number for everybody who rebuilds a consent database: one at a time."""
PACKAGE: Final = "projection_service"
CONNECTIONS: Final = 5
PURGED_WITHIN_S: Final = 600.0
FIRST_WAIT_MS: Final = 100
"""For one lock. A query that waits for us, as we wait for it, looks for such a deadlock after one
second (PostgreSQL's deadlock_timeout): by then we have given up, so that no query ever fails."""
WAIT_FOR_OTHER_REBUILD_MS: Final = 2000
"""The lock of a rebuild that was killed goes when its server process has noticed."""

Mode = Literal["SHARE", "ACCESS EXCLUSIVE"]

_READ_RIGHTS = statement(PACKAGE, "read_rights")
_READ_POSITIONS = statement(PACKAGE, "read_positions")
_READ_LIVE_POSITIONS = statement(PACKAGE, "read_live_positions")
_STAMP_SHADOW = statement(PACKAGE, "stamp_shadow")
_READ_PURGED_UNTIL = statement("projection_service", "read_purged_until")
_PURGE_SHADOW = statement("projection_service", "purge_shadow")
_UNPARK_DISCARDED = statement(PACKAGE, "unpark_discarded")
_HOLD_READ_MODEL = statement(PACKAGE, "hold_read_model")
_READ_LONGEST_USER = statement(PACKAGE, "read_longest_user")
_SWITCH_TO_SHADOW = statement(PACKAGE, "switch_to_shadow")


@dataclass(frozen=True)
class Shadow:
    """The shadow of one rebuild. Nobody else writes into it: each statement names this epoch."""

    connection: Connection
    """Holds the lock, and switches: whoever lost the lock can't."""
    pool: Pool
    """Its sessions see the shadow's tables under the read model's names."""
    epoch: int
    switching: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it may have taken the read model's place."""
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def model(self) -> ReadModel:
        """The shadow, as the projection knows the read model."""
        return ReadModel(self.pool)

    async def positions(self) -> dict[int, int]:
        """Read how far every partition is projected into the shadow."""
        return _positions(await self.pool.fetch(_READ_POSITIONS))

    async def live_places(self) -> dict[int, LogPlace]:
        """Read the last event of every partition that is projected into the read model."""
        return await self.model.read_places()

    async def followed_log(self) -> UUID | None:
        """Read which log the read model follows; None where it does not know yet."""
        return await self.model.followed_log()

    @asynccontextmanager
    async def held(self, mode: Mode, patience: int) -> AsyncIterator[dict[int, int]]:
        """Keep writers (SHARE), or readers too (ACCESS EXCLUSIVE), out of the read model.

        Whoever uses it is waited for, `patience` times as long as at first; and who comes after
        that waits as long. Yields how far each partition is projected in it; commits in the end.
        Raises asyncpg.LockNotAvailableError where somebody is in the way.
        """
        async with self._one_at_a_time, self.connection.transaction():
            await self._set("lock_timeout", str(FIRST_WAIT_MS * patience))
            await self._set("consent.tables", ",".join(TABLES))
            await self._set("consent.mode", mode)
            await self.connection.execute(_HOLD_READ_MODEL)
            yield _positions(await self.connection.fetch(_READ_LIVE_POSITIONS))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Session]:
        """Open a transaction that goes on seeing what its first statement saw."""
        async with (
            self.pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield connection

    async def give_up_discarded(self) -> None:
        """Discard in the shadow what was discarded in the read model, and apply what it blocked."""
        async with self.pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(_UNPARK_DISCARDED)
            for patient_id in {row["patient_id"] for row in rows}:
                await retry_parked(connection, patient_id)
            await connection.execute(_STAMP_SHADOW, self.epoch)

    async def forget_purged(self, reader: Queryable) -> None:
        """Purge in the shadow's history what was purged in the read model's.

        `reader` reads up to when that was: while the read model is held, only its holder can.
        """
        until = await reader.fetchval(_READ_PURGED_UNTIL)
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(_PURGE_SHADOW, until, timeout=PURGED_WITHIN_S)
            await connection.execute(_STAMP_SHADOW, self.epoch)

    async def switch(self) -> None:
        """Put the shadow in the place of the read model, which is held with ACCESS EXCLUSIVE."""
        self.switching.set()
        await compare_schema(self.connection, PACKAGE)  # nobody migrated meanwhile
        await self.connection.execute(_SWITCH_TO_SHADOW)

    async def count_parked(self) -> int:
        """Count the events that can't be applied."""
        return int(await self.pool.fetchval("SELECT count(*) FROM parked_events"))

    async def who_is_in_the_way(self) -> str:
        """Say in words who uses the read model for longest."""
        row = await self.pool.fetchrow(_READ_LONGEST_USER, list(TABLES))
        if row is None:
            return "somebody used the read model, and is done"
        name = row["application_name"] or "unnamed"
        return f"process {row['pid']} ({name}) uses the read model since {row['since']}"

    async def ping(self) -> None:
        """Raise where the connection that holds the lock is lost."""
        async with self._one_at_a_time:
            await self.connection.execute("SELECT")

    async def _set(self, name: str, value: str) -> None:
        await self.connection.execute("SELECT set_config($1, $2, true)", name, value)


@asynccontextmanager
async def open_shadow(url: str, partitions: int) -> AsyncIterator[Shadow]:
    """Make an empty shadow, in the place of one that was left behind; it is removed in the end.

    Raises SettingsError and SchemaError where something must be mended first, NotNow while
    another rebuild is running.
    """
    connection = await connect_once(url, PACKAGE, name="rebuild")
    try:
        await check_surroundings(connection, url, DATABASES[PACKAGE])
        await check_partitions(connection, partitions)
        await compare_schema(connection, PACKAGE)
        owner = await _become_owner(connection)
        await _lock(connection)
        async with _filled_by(connection, url, owner, partitions) as shadow:
            yield shadow
    finally:
        connection.terminate()


@asynccontextmanager
async def _filled_by(
    connection: Connection, url: str, owner: str, partitions: int
) -> AsyncIterator[Shadow]:
    await _make(connection, partitions)
    shadow_first = {"search_path": SCHEMA, "role": owner, "synchronous_commit": "off"}
    pool = await open_pool(url, name="rebuild", size=CONNECTIONS, settings=shadow_first)
    try:
        shadow = Shadow(connection, pool, epoch=secrets.randbits(62))
        await connection.execute(_STAMP_SHADOW, shadow.epoch)
        yield shadow
    finally:
        pool.terminate()
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await _remove(connection)


async def _become_owner(connection: Connection) -> str:
    """Act as the role that owns the read model, so that it owns what is made here too."""
    row = await connection.fetchrow(_READ_RIGHTS)
    assert row is not None  # noqa: S101 - the schema has been checked
    owner, database = row["owner"], row["database"]
    if not row["is_owner"]:
        raise SettingsError(
            f"only {owner}, who owns the read model's tables, can rebuild it: "
            "put that role into READ_MODEL_URL"
        )
    if not row["may_make_schema"]:
        raise SettingsError(
            f"{owner} may not create the schema {SCHEMA}: "
            f'GRANT CREATE ON DATABASE "{database}" TO "{owner}"'
        )
    if not row["may_make_tables"]:
        raise SettingsError(
            f"{owner} may not create tables in the schema public: "
            f'GRANT CREATE ON SCHEMA public TO "{owner}"'
        )
    await connection.execute("SELECT set_config('role', $1, false)", owner)
    return str(owner)


async def _lock(connection: Connection) -> None:
    """Let nobody else rebuild as long as this connection lives."""
    await connection.execute(f"SET lock_timeout = {WAIT_FOR_OTHER_REBUILD_MS}")
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", REBUILD_LOCK)
    except asyncpg.LockNotAvailableError:
        raise NotNow(
            "another rebuild of this read model is running: let it end, then try again"
        ) from None
    await connection.execute("RESET lock_timeout")


async def _make(connection: Connection, partitions: int) -> None:
    await _remove(connection)
    await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await connection.execute(f"SET search_path = {SCHEMA}")
    await copy_schema(connection, PACKAGE, partitions)


async def _remove(connection: Connection) -> None:
    await connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def _positions(rows: Sequence[asyncpg.Record]) -> dict[int, int]:
    return {row["partition"]: row["position"] for row in rows}
