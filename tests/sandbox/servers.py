"""What every sandbox gives, however its servers were started."""

import asyncio
import json
import socket
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import asyncpg

HOST = "127.0.0.1"
USER = "consent"

POSTGRES_SETTINGS = {
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "shared_preload_libraries": "pg_stat_statements",
}
# For tests that never take a server down: nothing of theirs has to survive that.
HASTY_POSTGRES_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

# What a client meets while PostgreSQL is down, or comes up, or goes down.
NOT_YET = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TargetServerAttributeNotMatched,
)

AMQP_GREETING = b"AMQP\x00\x00\x09\x01"

T = TypeVar("T")


class ServerDidNotStart(Exception):
    """A server ended, or did not answer in time; the message shows the end of its log."""


class BrokerRefused(Exception):
    """The broker's management API answered a request with an error."""


class Server(ABC):
    """Keeps its ports and its data when it is stopped or killed and started again."""

    @abstractmethod
    def start(self) -> None:
        """Returns when the server answers; raises `ServerDidNotStart`."""

    @abstractmethod
    def stop(self) -> None:
        """Lets the server put its things in order; its clients are cut off."""

    @abstractmethod
    def kill(self) -> None:
        """Ends the server as a crash would."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether its clients can work with it now."""


class DatabaseServer(Server):
    def __init__(self, port: int, password: str, host: str = HOST) -> None:
        self.host = host
        self.port = port
        self.password = password

    def url(self, database: str = "postgres") -> str:
        server = f"postgresql://{USER}:{self.password}@{self.host}:{self.port}"
        return f"{server}/{quote(database, safe='')}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Gives the new database's URL. Nobody may be connected to the template."""
        copied = f' TEMPLATE "{template}" STRATEGY FILE_COPY' if template else ""
        self.execute(f'CREATE DATABASE "{name}"{copied}')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Cuts off whoever is still connected to it; no complaint if there is none."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, sql: str, database: str = "postgres") -> None:
        """One statement, or several as one transaction."""
        in_a_loop_of_its_own(self._execute(sql, database))

    def fetch(self, sql: str, database: str = "postgres") -> list[asyncpg.Record]:
        """One statement's rows."""
        return in_a_loop_of_its_own(self._fetch(sql, database))

    def answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except NOT_YET:
            return False
        return True

    async def _connect(self, database: str) -> "asyncpg.Connection[asyncpg.Record]":
        # Without TLS, which would have it look for certificates in the user's home.
        return await asyncpg.connect(self.url(database), timeout=10, ssl=False)

    async def _execute(self, sql: str, database: str) -> None:
        connection = await self._connect(database)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def _fetch(self, sql: str, database: str) -> list[asyncpg.Record]:
        connection = await self._connect(database)
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()


class Broker(Server):
    def __init__(self, port: int, management_port: int, password: str, host: str = HOST) -> None:
        self.host = host
        self.port = port
        self.management_port = management_port
        self.password = password
        self.tls_port = 0
        """0 where the sandbox was given no certificates."""

    @property
    def url(self) -> str:
        return f"amqp://{USER}:{self.password}@{self.host}:{self.port}/"

    @property
    def management_url(self) -> str:
        return f"http://{USER}:{self.password}@{self.host}:{self.management_port}"

    def put_on_disk(self) -> None:
        """Restart it in good order, so that a kill forgets nothing that was declared before.

        RabbitMQ 3.10 writes down up to seconds later which quorum queues it runs. Killed before
        that, it knows such a queue when it is back, but runs it without a leader: nobody can
        consume from it, and after a minute whoever tries is told of an internal error.
        """
        self.stop()
        self.start()

    @abstractmethod
    def ctl(self, *words: str) -> None:
        """Runs `rabbitmqctl` on it; raises `BrokerRefused` with what it said."""

    def create_vhost(self, name: str) -> str:
        """Gives the new virtual host's URL; the sandbox's user may do everything in it."""
        path = quote(name, safe="")
        self.api("PUT", f"/vhosts/{path}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"/permissions/{path}/{USER}", everything)
        return self.url + path

    def delete_vhost(self, name: str) -> None:
        self.api("DELETE", f"/vhosts/{quote(name, safe='')}")

    def api(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - any JSON
        """Asks the management API, `path` being what follows `/api`; raises `BrokerRefused`."""
        connection = HTTPConnection(self.host, self.management_port, timeout=20)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, f"/api{path}", content, self._headers())
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise BrokerRefused(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text) if text else None

    def answers(self) -> bool:
        return self._greets() and self._manages()

    def _greets(self) -> bool:
        """Answers the greeting of AMQP 0-9-1 with a method frame on channel 0."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as connection:
                connection.sendall(AMQP_GREETING)
                return connection.recv(3) == b"\x01\x00\x00"
        except OSError:
            return False

    def _manages(self) -> bool:
        try:
            self.api("GET", "/overview")
        except (OSError, HTTPException, BrokerRefused):
            return False
        return True

    def _headers(self) -> dict[str, str]:
        credentials = b64encode(f"{USER}:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}


class Sandbox:
    """Two database servers and a broker, which end when it is closed."""

    def __init__(
        self,
        broker: Broker,
        event_store_server: DatabaseServer,
        read_model_server: DatabaseServer,
        close: Callable[[], None],
    ) -> None:
        self.broker = broker
        self.event_store_server = event_store_server
        self.read_model_server = read_model_server
        self._close = close

    def close(self) -> None:
        """Ends the servers at once and removes their data. A second time does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def in_a_loop_of_its_own(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in another thread, so that a caller inside a running loop can wait for it too."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
