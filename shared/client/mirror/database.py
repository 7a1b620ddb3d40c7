"""The mirror's file: an SQLite database that one process writes and several read at once."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shared.errors import SchemaError, SettingsError
from shared.postgres.statements import statement

FORMAT: Final = 1
"""The file's `user_version`. One of another format is refused: it is made anew from the log."""
BUSY_S: Final = 5.0
"""How long a writer waits for another one's transaction."""
READ_BUSY_S: Final = 0.5
"""Readers wait for nobody, but while a file is mended after its writer was killed."""
MOST_MAPPED: Final = 2**31 - 2**16
"""Bytes of the file that are read where they are in memory: all processes share them."""
TABLES: Final = ("create_consents", "create_partitions", "create_unreadable", "create_trouble")
OWN: Final = 0o600


def sql(name: str) -> str:
    """Read a statement of the mirror's."""
    return statement("shared.client.mirror", name)


def identity(path: Path) -> int:
    """Tell a file from one that was put in its place; raises FileNotFoundError."""
    return path.stat().st_ino


def open_to_read(path: Path, partitions: int) -> sqlite3.Connection:
    """Open a file that was made.

    Raises sqlite3.Error where it is being made; SettingsError and SchemaError for another one.
    """
    connection = _open(path, READ_BUSY_S)
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA mmap_size = {MOST_MAPPED}")
        _check(connection, path, partitions)
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_write(path: Path, partitions: int) -> sqlite3.Connection:
    """Open a file, and make it where it is not there: without consents, at the logs' beginning.

    A power cut may take the last transactions, whole; no kill of a process takes any.
    Raises SettingsError and SchemaError where the file is another one, and sqlite3.Error.
    """
    connection = _open_or_make(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        _prepare(connection, path, partitions)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Commit what is done in the block, or nothing of it."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _open_or_make(path: Path) -> sqlite3.Connection:
    """Open a file, and make it for its owner alone where it is not there.

    Nothing but SQLite may open it: whoever closes a file again ends all locks that his process has
    on it, and other processes would then take the mirror's connections for gone.
    """
    is_new = not path.exists()
    connection = _open(path, BUSY_S, mode="rwc")
    if is_new:
        path.chmod(OWN)
    return connection


def _open(path: Path, busy_s: float, mode: str = "rw") -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_s,
        isolation_level=None,
        check_same_thread=False,
    )


def _prepare(connection: sqlite3.Connection, path: Path, partitions: int) -> None:
    with transaction(connection):
        if _is_empty(connection):
            for name in TABLES:
                connection.execute(sql(name))
            numbers = ((number,) for number in range(partitions))
            connection.executemany("INSERT INTO partitions (number) VALUES (?)", numbers)
            connection.execute("INSERT INTO trouble VALUES (NULL, 0)")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        _check(connection, path, partitions)


def _check(connection: sqlite3.Connection, path: Path, partitions: int) -> None:
    """Raise SettingsError or SchemaError where a file is not as it is expected to be."""
    if _is_empty(connection):
        raise sqlite3.OperationalError("it is being made")
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found != FORMAT:
        raise SchemaError(
            f"the mirror's file {path} has format {found}, and this version reads {FORMAT}: "
            "delete it or give another path, and it is made anew from the log"
        )
    (count,) = connection.execute("SELECT count(*) FROM partitions").fetchone()
    if count != partitions:
        raise SettingsError(
            f"the mirror's file {path} is of a deployment of {count} partitions, not {partitions}: "
            "give the right number or another path"
        )


def _is_empty(connection: sqlite3.Connection) -> bool:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(tables == 0)
