"""Opens connections to PostgreSQL, the same way for workers, their observers and one-time verbs.

What a session is to have is said after it was opened, by one more round trip, and not in the
startup packet: a pooler refuses each parameter there that it does not know.
"""

import asyncio
import getpass
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import asyncpg

from shared.errors import NotConnected, SettingsError
from shared.errors.connection import Server, explained
from shared.values.database_url import DatabaseUrl, read_database_url

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Session: TypeAlias = "Connection | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
"""A connection of one's own, or borrowed from a pool."""
Queryable: TypeAlias = "Session | Pool"

LONGEST_NAME: Final = 63
OURS: Final = {
    "search_path": "public",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "60s",
}
"""What a role or a database may be set to otherwise, and everything takes for granted: also that a
transaction ends whose host has vanished, lest its locks outlive it for hours. A rebuild leaves one
idle for the longest time, 8 s."""
BY_INDEX: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}
"""Every statement of the workers looks up some rows by their keys, in tables that grow faster than
their statistics: left to itself the planner reads whole tables, at a hundred times the price."""


async def dial(
    url: str,
    server: Server,
    *,
    name: str,
    settings: Mapping[str, str] | None = None,
    **passed: Any,  # noqa: ANN401 - the driver's own options, which its pool passes through
) -> Connection:
    """Open one connection; pg_stat_activity shows the end of the name.

    `settings` are PostgreSQL's own, for this session. Raises SettingsError where the URL can
    never work, NotConnected where a server must be mended or the URL.
    """
    try:
        read = read_database_url(url)
    except ValueError as error:
        raise SettingsError(f"{server.setting} is wrong: {error}") from None
    _check_user(read, server)
    _leave_a_home_that_is_not_ours()
    last: BaseException | None = None
    for host_url in read.one_by_one:
        try:
            return await _dial_host(
                host_url, read, server, name, {**OURS, **(settings or {})}, passed
            )
        except (OSError, asyncpg.CannotConnectNowError) as error:
            if isinstance(error, NotConnected) and not _is_unwanted(error):
                raise
            last = last if _is_unwanted(last) else error
    assert last is not None  # noqa: S101 - there is one URL at least
    raise last


def _is_unwanted(error: BaseException | None) -> bool:
    """Whether a host answered and is not what was asked for: more telling than others' silence."""
    return error is not None and isinstance(
        error.__cause__, asyncpg.TargetServerAttributeNotMatched
    )


async def _dial_host(
    url: str,
    read: DatabaseUrl,
    server: Server,
    name: str,
    settings: Mapping[str, str],
    passed: Mapping[str, Any],
) -> Connection:
    seconds = read.connect_timeout_s
    startup = {"application_name": name[-LONGEST_NAME:]}
    try:
        with explained(server):
            async with asyncio.timeout(seconds):
                connection: Connection = await asyncpg.connect(
                    url, timeout=seconds, server_settings=startup, **passed
                )
                await _prepare(connection, settings)
                return connection
    except TimeoutError:
        raise TimeoutError(f"{server.name} does not answer within {seconds} s") from None
    except (FileNotFoundError, PermissionError) as error:
        raise _unread(error, read, server) from error


async def _prepare(connection: Connection, settings: Mapping[str, str]) -> None:
    try:
        await connection.execute(_set(settings))
    except BaseException:
        connection.terminate()
        raise


def _unread(error: OSError, read: DatabaseUrl, server: Server) -> OSError:
    """Say which file it is that is missing or locked; the system's error does not."""
    if read.is_socket:
        return ConnectionRefusedError(
            f"{server.name} has no socket there that this user may use ({error.strerror})"
        )
    if read.names_certificates:
        return NotConnected(
            f"a certificate file named in {server.setting} can't be read ({error.strerror}): "
            f"check {server.authority} and the other files there"
        )
    return NotConnected(
        f"a file in {Path.home() / '.postgresql'} can't be read ({error.strerror}): set HOME to "
        f"another place, or name the certificate files in {server.setting}"
    )


def _set(settings: Mapping[str, str]) -> str:
    """Write one statement without parameters: it takes a single round trip."""
    calls = (f"set_config({_quoted(k)}, {_quoted(v)}, false)" for k, v in settings.items())
    return f"SELECT {', '.join(calls)}"


def _quoted(text: str) -> str:
    """Quote a literal so that no setting of the database changes how it is read."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


def _check_user(read: DatabaseUrl, server: Server) -> None:
    """The driver asks the system for a name where none is given, and some users have none."""
    if read.user or os.environ.get("PGUSER"):
        return
    try:
        getpass.getuser()
    except (KeyError, OSError):
        raise SettingsError(
            f"{server.setting} names no user, and the user of this process has no name "
            f"(uid {os.getuid()}): put a user before the @ of its host"
        ) from None


def _leave_a_home_that_is_not_ours() -> None:
    """Have the driver look for certificates in no home, where this user may not enter its own.

    A supervisor that changes the user often leaves HOME as it was.
    """
    try:
        (Path.home() / ".postgresql" / "root.crt").stat()
    except PermissionError:
        os.environ["HOME"] = os.devnull
    except (OSError, RuntimeError, KeyError):
        return
