"""What `check` finds out about clocks: this machine's, and those of the two databases.

A consent ends in answers by the read model's clock, and is recorded as ended by the event store's:
by as much as they differ, the two do not agree.
"""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from shared.cli.check_results import Finding
from shared.errors import ConsentError
from shared.errors.connection import DATABASES
from shared.errors.text import said_by
from shared.postgres.connection import Queryable
from shared.postgres.database import connect_once
from shared.settings import secret

MOST_SKEW: Final = timedelta(seconds=2)
NOT_COMPARED: Final = (
    ConsentError,
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)


def _utc() -> datetime:
    return datetime.now(UTC)


async def clock_findings(database: Queryable, package: str) -> AsyncIterator[Finding]:
    """Compare this machine's clock with a service's database, and that with the other one."""
    yield await clock_finding(database, _utc)
    yield await clocks_finding(database, package)


async def clock_finding(database: Queryable, now: Callable[[], datetime]) -> Finding:
    """Compare this machine's clock with the database's, which stamps the events."""
    skew = await _lead_over(database, now)
    remedy = "set both by NTP, or the times of logs and events can't be compared"
    return _finding("clock", "this machine's", "the database's", skew, remedy)


async def clocks_finding(database: Queryable, package: str) -> Finding:
    """Compare the clocks of the two databases, where both are known here."""
    ((other, server),) = ((name, one) for name, one in DATABASES.items() if name != package)
    try:
        url = secret(server.setting)
        if url is None:
            return Finding("clocks", True, f"not compared: {server.setting} is not set here")
        connection = await connect_once(url, other, name="check")
        try:
            theirs = await _lead_over(connection, _utc)
        finally:
            connection.terminate()
    except NOT_COMPARED as error:
        return Finding("clocks", True, f"not compared with {server.name}'s: {said_by(error)}")
    skew = theirs - await _lead_over(database, _utc)
    remedy = "set both by NTP, or consents end in answers at another moment than they are told to"
    return _finding("clocks", f"{DATABASES[package].name}'s", f"{server.name}'s", skew, remedy)


async def _lead_over(database: Queryable, now: Callable[[], datetime]) -> timedelta:
    """Tell by how much this machine's clock is ahead of a database's."""
    before = now()
    theirs: datetime = await database.fetchval("SELECT clock_timestamp()")
    return before + (now() - before) / 2 - theirs


def _finding(name: str, one: str, other: str, ahead: timedelta, remedy: str) -> Finding:
    """Judge by how much one clock is ahead of another."""
    direction = "ahead of" if ahead > timedelta(0) else "behind"
    difference = f"{abs(ahead).total_seconds():.1f} s {direction} {other}"
    if abs(ahead) > MOST_SKEW:
        return Finding(name, False, f"{one} is {difference}: {remedy}")
    return Finding(name, True, difference if name == "clock" else f"{one} is {difference}")
