"""Says in one line why something failed, and nothing of what the message in hand was about."""

from typing import Final

import asyncpg
from aiormq.exceptions import AMQPError

from shared.errors import ConsentError, ServerLeft, SurroundingsWrong, TopologyMissing
from shared.errors.connection import BROKER_ERRORS, ConnectionLost

WITHOUT_VALUES: Final = (ConsentError, *BROKER_ERRORS, asyncpg.InterfaceError)
"""Whose words are about the servers and us. Those of others may quote what they stumbled over."""
_ABOUT_VALUES: Final = ("22", "23")
"""Classes of SQLSTATE, data and integrity, whose messages quote what was to be written."""


def missing_for(error: BaseException) -> str | None:
    """Name what a worker has to wait for after an error; None where the error does not tell."""
    match error:
        case TopologyMissing():
            return "topology"
        case ServerLeft():
            return "log_set_back"
        case asyncpg.PostgresError() | asyncpg.InterfaceError() | asyncpg.InternalClientError():
            return "database"
        case SurroundingsWrong():
            return "database"
        case AMQPError() | ConnectionLost():
            return "broker"
    return None


def reason_of(error: BaseException) -> str:
    """Name the kind of an error, and what it says where that quotes no values."""
    kind, words = type(error).__name__, _words(error)
    return f"{kind}: {words}" if words else kind


def words_of(error: BaseException) -> str:
    """Say what the error says where that quotes no values, else of what kind it is."""
    return _words(error) or type(error).__name__


def said_by(error: BaseException) -> str:
    """Say what an error of a server says; one without words is named by its kind."""
    return str(error) or type(error).__name__


def _words(error: BaseException) -> str:
    if isinstance(error, asyncpg.PostgresError):
        return _database_words(error)
    return " ".join(str(error).split()) if isinstance(error, WITHOUT_VALUES) else ""


def _database_words(error: asyncpg.PostgresError) -> str:
    """Leave out DETAIL and HINT always: they quote rows."""
    state = error.sqlstate or ""
    if state.startswith(_ABOUT_VALUES):
        return " ".join(filter(None, ("SQLSTATE", state, error.constraint_name)))
    return " ".join(str(error.args[0] if error.args else "").split())
