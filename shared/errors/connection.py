"""Says what it means when a server is there and will not talk to us, and what to mend."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import aiormq
import asyncpg
from aiormq.exceptions import AMQPError, InvalidFrameError, ProbableAuthenticationError

from shared.errors import NotConnected, SettingsError


@dataclass(frozen=True)
class Server:
    """A server that we connect to, and the words in which its operator knows it."""

    name: str
    setting: str
    authority: str
    """The option of its URL that says whose certificates to trust."""


WORKER_CONNECTIONS: Final = 7
"""What one worker takes of its database: the pool of its session, and its observer's own."""
BROKER: Final = Server("the broker", "RABBITMQ_URL", "cafile")
DATABASES: Final = {
    "command_service": Server("the event store", "EVENT_STORE_URL", "sslrootcert"),
    "projection_service": Server("the read model", "READ_MODEL_URL", "sslrootcert"),
}
MAYBE_TLS: Final = (
    "the broker cut the connection off before a word: if it speaks TLS alone, begin RABBITMQ_URL "
    "with amqps://"
)
SOME_DATABASE: Final = Server("the database", "the database's URL", "sslrootcert")


@contextmanager
def explained(server: Server) -> Iterator[None]:
    """Raise NotConnected, in one line, where a setting must be mended to get a connection.

    SettingsError where no server was asked, since the driver can't work with it. What may pass by
    itself is raised as it is, or with more words. No line holds a password.
    """
    try:
        yield
    except asyncpg.TooManyConnectionsError as error:
        raise type(error)(_no_room(error, server)) from error
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise SettingsError(f"{server.setting} is wrong: {error}") from error
    except asyncpg.TargetServerAttributeNotMatched as error:
        raise NotConnected(_no_such_host(server)) from error
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"{server.name} does not answer in time") from error
    except (OSError, AMQPError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        line = _tls(error, server) or _login(error, server) or _address(error, server)
        if line is not None:
            raise NotConnected(line) from error
        if server is BROKER and _hung_up(error):
            raise ConnectionResetError(MAYBE_TLS) from error  # or it is just going down
        raise


def _tls(error: BaseException, server: Server) -> str | None:
    """Explain trouble with certificates, or TLS on one side only."""
    match _cause(error):
        case ssl.SSLCertVerificationError() as untrusted:
            why = untrusted.verify_message.rstrip(".")
            return (
                f"{server.name}'s TLS certificate is not trusted ({why}): "
                f"check {server.authority}, and the host's name, in {server.setting}"
            )
        case ssl.SSLError() as failed:
            return (
                f"no TLS with {server.name} ({failed.reason or failed}): check the certificate "
                f"files in {server.setting}, and whether that port speaks TLS"
            )
        case FileNotFoundError() | PermissionError() as unread if server is BROKER:
            return (
                f"a certificate file named in {server.setting} can't be read "
                f"({unread.strerror}): check {server.authority} and the other files there"
            )
        case ConnectionError() as plain if type(plain) is ConnectionError:  # asyncpg's only one
            return f"{plain}: it has no TLS; check sslmode in {server.setting}"
    return None


def _login(error: BaseException, server: Server) -> str | None:
    match error:
        case ProbableAuthenticationError() | asyncpg.InvalidPasswordError():
            return (
                f"{server.name} refuses the login ({error}): "
                f"check the user and password in {server.setting}"
            )
        case asyncpg.InvalidAuthorizationSpecificationError():
            return f"{server.name} refuses: {error}: check user and sslmode in {server.setting}"
    return None


def _address(error: BaseException, server: Server) -> str | None:
    match error:
        case InvalidFrameError():  # aiormq takes the refusal for an odd frame, and drops its words
            return (
                f"{server.name} refuses the virtual host: check the path of {server.setting}, "
                "and that its user has permissions there"
            )
        case asyncpg.InvalidCatalogNameError():
            return f"{server.name} refuses: {error}: check the path of {server.setting}"
        case asyncpg.UndefinedObjectError() | asyncpg.InvalidParameterValueError():
            return f"{server.setting} is wrong: {error}"
        case asyncpg.ProtocolViolationError():  # PostgreSQL never says so, poolers say it of all
            return (
                f"{server.name}'s pooler refuses: {error}: check {server.setting} and its settings"
            )
        case asyncpg.InterfaceError():
            return f"{server.setting} is wrong: {error}"
    return None


def _no_room(error: asyncpg.TooManyConnectionsError, server: Server) -> str:
    return (
        f"{server.name} has no connection left ({error}): each worker takes "
        f"{WORKER_CONNECTIONS}; raise the CONNECTION LIMIT of the role, or max_connections"
    )


def _no_such_host(server: Server) -> str:
    return (
        f"read-only or not what is asked for: no host of {server.name} that answers is as "
        f"target_session_attrs in {server.setting} wants it"
    )


def _hung_up(error: BaseException) -> bool:
    """Whether the other side ended the connection, by a reset or in the middle of an answer."""
    return isinstance(error.__cause__ or error, (ConnectionResetError, EOFError))


def _cause(error: BaseException) -> BaseException:
    """Look through aiormq's wrapping of what the system said."""
    return error.__cause__ if isinstance(error.__cause__, OSError) else error


class ConnectionLost(ConnectionError):
    """The broker went away, or it took a channel or a consumer from us."""


BROKER_ERRORS: Final = (
    OSError,
    TimeoutError,
    EOFError,
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,
)
"""What a broker that is away, restarting or cut off makes the libraries raise."""
