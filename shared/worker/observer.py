"""Looks at the facts beside the work, on connections of its own, whatever the work waits for.

What it finds makes the readiness and the gauges. It runs only where HTTP shows them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Final

from shared.errors import BrokerBlocked, NoAnswer, QueryRefused, SchemaError, TopologyMissing
from shared.errors.connection import DATABASES
from shared.errors.text import words_of
from shared.event_log.log_client import LogClient
from shared.postgres.connection import BY_INDEX, Connection, dial
from shared.postgres.database import compare_schema
from shared.rabbitmq.alarms.alarm_probe import AlarmProbe
from shared.rabbitmq.connection import (
    Broker,
    Channel,
    EntityNotFound,
    connect,
    only_our_cancellation,
)
from shared.rabbitmq.rpc_client import Requests
from shared.rabbitmq.topology import EXCHANGES, queues
from shared.settings import WorkerSettings
from shared.telemetry.lag import FRESH_S
from shared.telemetry.metrics import LAST_LOOK, QUEUE_CONSUMERS, QUEUE_MESSAGES
from shared.telemetry.readiness import Readiness

LOOK_EVERY_S: Final = 2.0
EFFORT: Final = 10
"""A look is followed by a pause of so many times its length, within reason."""
PATIENCE_S: Final = 5.0
"""A server that lets a look wait for longer does not answer."""
ANSWER_WITHIN_S: Final = 3.0
CLOSE_WITHIN_S: Final = 1.0


@dataclass(frozen=True)
class Probe:
    """What a service looks at beside what both do."""

    look: Callable[[Connection], Awaitable[None]]
    """Reads its database."""
    ask: Callable[[LogClient], Awaitable[None]] | None = None
    """Asks for the log's heads, where that is another service's."""


class Observer:
    """Looks again and again, at the database and at the broker, each for itself."""

    def __init__(
        self,
        package: str,
        database_url: str,
        settings: WorkerSettings,
        readiness: Readiness,
        probe: Probe,
    ) -> None:
        self._package = package
        self._database_url = database_url
        self._settings = settings
        self._readiness = readiness
        self._probe = probe
        self._database: Connection | None = None
        self._broker = AsyncExitStack()
        self._channel: Channel | None = None
        self._bell: AlarmProbe | None = None
        self._log: LogClient | None = None
        self._stopping = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look until the end of the block."""
        looks = (
            self._repeat("database", self._look_at_database, self._leave_database),
            self._repeat("broker", self._look_at_broker, self._leave_broker),
        )
        tasks = [asyncio.create_task(look) for look in looks]
        try:
            yield
        finally:
            self._stopping.set()  # a library may swallow the cancellation that follows
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=PATIENCE_S + CLOSE_WITHIN_S)

    async def _repeat(
        self, at: str, look: Callable[[], Awaitable[None]], leave: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            while not self._stopping.is_set():
                began = monotonic()
                await self._try(at, look, leave)
                pause = min(FRESH_S / 2, EFFORT * (monotonic() - began))
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(LOOK_EVERY_S, pause)):
                        await self._stopping.wait()
        finally:
            await leave()

    async def _try(
        self, at: str, look: Callable[[], Awaitable[None]], leave: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            with only_our_cancellation():
                await look()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next look may hold
            if isinstance(error, BrokerBlocked):  # the connection waits, and hears when it is over
                self._readiness.report(at)
                return
            self._readiness.report(at, *_trouble(at, error))
            await leave()
        else:
            self._readiness.report(at)
            LAST_LOOK.labels(at).set_to_current_time()

    async def _look_at_database(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            if self._database is None:
                self._database = await self._connect_database()
            await self._probe.look(self._database)
            await compare_schema(self._database, self._package)

    async def _connect_database(self) -> Connection:
        name = f"{self._package} observer"
        server = DATABASES[self._package]
        return await dial(self._database_url, server, name=name, settings=BY_INDEX)

    async def _leave_database(self) -> None:
        if self._database is not None:
            self._database.terminate()
        self._database = None

    async def _look_at_broker(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            if self._channel is None or self._bell is None:
                self._channel, self._bell = await self._connect_broker()
            await self._bell.ring()
            await self._look_at_topology(self._channel)
        if self._probe.ask and self._log:
            with suppress(NoAnswer, QueryRefused, TimeoutError):
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    await self._probe.ask(self._log)
                LAST_LOOK.labels("log").set_to_current_time()

    async def _connect_broker(self) -> tuple[Channel, AlarmProbe]:
        name = f"{self._package} {self._settings.worker_id} observer"
        broker: Broker = await self._broker.enter_async_context(
            connect(self._settings.rabbitmq_url, name=name)
        )
        self._log = LogClient(await Requests.open(broker))
        broker.alarm.tell(partial(self._readiness.blocked, "observer"))
        return await broker.channel(), await AlarmProbe.open(broker)

    async def _look_at_topology(self, channel: Channel) -> None:
        """Ask for each exchange and queue; that needs no permission, and tells how much waits."""
        for exchange in EXCHANGES:
            try:
                await channel.exchange_declare(exchange.name, passive=True)
            except EntityNotFound:
                raise TopologyMissing(exchange.name, "exchange") from None
        for queue in queues(self._settings.consent_partitions):
            try:
                found = await channel.queue_declare(queue.name, passive=True)
            except EntityNotFound:
                raise TopologyMissing(queue.name) from None
            QUEUE_MESSAGES.labels(queue.name).set(found.message_count or 0)
            QUEUE_CONSUMERS.labels(queue.name).set(found.consumer_count or 0)

    async def _leave_broker(self) -> None:
        self._channel = self._bell = self._log = None
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await self._broker.aclose()
        self._broker = AsyncExitStack()


def _trouble(at: str, error: Exception) -> tuple[str, str]:
    match error:
        case SchemaError():
            return "schema", str(error)
        case TopologyMissing():
            return "topology", str(error)
        case TimeoutError():
            return at, f"the {at} does not answer within {PATIENCE_S:g} s"
        case _:
            return at, words_of(error)
