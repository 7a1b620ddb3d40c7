"""Removes what ended long ago from the history, a little at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from shared.postgres.connection import Connection
from shared.postgres.retention import purging
from shared.postgres.statements import statement

ROWS_AT_ONCE: Final = 2_000
"""How many rows one transaction looks at."""

_RAISE_HORIZON = statement("projection_service", "raise_horizon")
_COUNT_ENDED = statement("projection_service", "count_ended")
_PURGE_HISTORY = statement("projection_service", "purge_history")


@dataclass(slots=True)
class PurgedHistory:
    """What was removed, or would be; and since when the past is known."""

    until: datetime
    periods: int = 0
    requests: int = 0

    def add(self, row: asyncpg.Record) -> None:
        """Count more."""
        self.periods += row["periods"]
        self.requests += row["requests"]


async def purge_history(
    connection: Connection,
    older_than: timedelta,
    *,
    dry_run: bool = False,
    tell: Callable[[PurgedHistory], None] = lambda _: None,
) -> PurgedHistory:
    """Remove the periods and requests that ended so long ago; what is open stays.

    Questions about moments before are refused from the beginning on, so that none is answered
    from what is half removed. Stopped anywhere, it may be run again. `tell` hears how far it is.
    Raises SettingsError for an age below a day, or a role that may not remove.
    """
    with purging("history", older_than):
        purged = PurgedHistory(await connection.fetchval("SELECT now() - $1::interval", older_than))
        if dry_run:
            (counted,) = await connection.fetch(_COUNT_ENDED, purged.until)
            purged.add(counted)
        else:
            await connection.execute(_RAISE_HORIZON, purged.until)
            await _remove(connection, purged, tell)
    return purged


async def _remove(
    connection: Connection, purged: PurgedHistory, tell: Callable[[PurgedHistory], None]
) -> None:
    place: tuple[object, ...] = ("", "", "", "", "", 0)
    while row := await connection.fetchrow(_PURGE_HISTORY, purged.until, *place, ROWS_AT_ONCE):
        purged.add(row)
        tell(purged)
        place = tuple(row)[2:]
