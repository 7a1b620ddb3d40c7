"""What the services need of a database around the schema: encoding, sessions, room, writes."""

from typing import Final

import asyncpg

from shared.errors import NotConnected, SettingsError
from shared.errors.connection import WORKER_CONNECTIONS, Server
from shared.postgres.connection import Session, dial
from shared.postgres.statements import statement

ENCODINGS: Final = frozenset({"UTF8", "SQL_ASCII"})
"""SQL_ASCII keeps bytes as they come; ours are UTF-8, which the server checks as our encoding."""
_LOOKS: Final = 3
_NOT_KEPT: Final = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
"""A prepared statement that is gone, or another client's: the session is not ours alone."""

_READ_SURROUNDINGS = statement("shared.postgres", "read_surroundings")


async def check_surroundings(
    session: Session, url: str, server: Server, *, writes: bool = True
) -> asyncpg.Record:
    """Return what the session was given; without `writes`, a standby will do.

    Raises SettingsError where nothing can work until an operator mends it, NotConnected where
    the server takes no writes: that may pass.
    """
    try:
        found = await _read(session)
        if found["process"] != session.get_server_pid():  # the pid of a pooler, or of its making
            await _check_pooler(session, url, server, found["process"])
    except _NOT_KEPT:
        raise SettingsError(_shared(server)) from None
    if found["encoding"] not in ENCODINGS:
        raise SettingsError(_encoded(server, found["encoding"]))
    if writes and found["is_read_only"]:
        raise NotConnected(
            f"read-only: {server.name} takes no writes, as a standby does: put the primary into "
            f"{server.setting}, or all hosts and target_session_attrs=read-write"
        )
    return found


def too_few_connections(found: asyncpg.Record) -> str | None:
    """Say where the limits allow fewer connections than one worker takes; None where they do."""
    limits = {
        f"the role {found['role']}": (found["role_limit"], "ALTER ROLE … CONNECTION LIMIT"),
        "the database": (found["database_limit"], "ALTER DATABASE … CONNECTION LIMIT"),
        "the server": (found["server_limit"], "max_connections"),
    }
    for who, (limit, remedy) in limits.items():
        if limit is not None and limit < WORKER_CONNECTIONS:
            return (
                f"{who} allows {limit} connections, and each worker takes {WORKER_CONNECTIONS}: "
                f"raise {remedy}"
            )
    return None


async def _check_pooler(session: Session, url: str, server: Server, process: int) -> None:
    """Raise SettingsError where two sessions share a process, or one changes it."""
    other = await dial(url, server, name="check of a pooler")
    try:
        others = (await _read(other))["process"]
        own = [(await _read(session))["process"] for _ in range(_LOOKS)]
    finally:
        other.terminate()
    if process == others or {process} != set(own):
        raise SettingsError(_shared(server))


async def _read(session: Session) -> asyncpg.Record:
    row = await session.fetchrow(_READ_SURROUNDINGS)
    assert row is not None  # noqa: S101 - it always returns one
    return row


def _shared(server: Server) -> str:
    return (
        f"a pooler before {server.name} lends its connections by the transaction, and whole "
        f"sessions are needed: set pool_mode = session there, or lead {server.setting} past it"
    )


def _encoded(server: Server, encoding: str) -> str:
    return (
        f"{server.name} is in the encoding {encoding}, which can't hold every id: make it by "
        f"CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and put it into {server.setting}"
    )
