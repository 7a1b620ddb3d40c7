"""One connection to RabbitMQ and its channels, by aio-pika's underlay.

aio-pika wraps every message in an object and a task of its own. What carries every command and
event uses the channel underneath, which aio-pika hands out for such purposes. A broken connection
is not mended in place: whoever used it lets go of all that was in hand and begins anew.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from random import sample
from time import monotonic
from typing import Any, Final
from uuid import uuid4

import aio_pika
import aiormq
from aiormq.abc import AbstractConnection, DeliveredMessage
from pamqp.commands import Basic
from yarl import URL

from shared.errors import NotConnected, first_cause
from shared.errors.connection import BROKER, BROKER_ERRORS, ConnectionLost, explained
from shared.rabbitmq.alarms.alarm import Alarm
from shared.rabbitmq.wire.deliveries import hand_over, read_in_one_go
from shared.rabbitmq.wire.lenient_decoding import read_odd_properties
from shared.rabbitmq.wire.socket import Wire, keep_wire
from shared.values.several_hosts import UNVERIFIED, one_by_one, trusts_anybody

Channel = aiormq.Channel
AmqpMessage = DeliveredMessage
Properties = Basic.Properties

_SILENCE: Final = "_Connection__heartbeat_grace_timeout"
"""How aiormq names what it bears; it derives that from the heartbeat, which others go by too."""

EntityNotFound = aiormq.exceptions.ChannelNotFoundEntity
AccessRefused = aiormq.exceptions.ChannelAccessRefused
PreconditionFailed = aiormq.exceptions.ChannelPreconditionFailed
ResourceLocked = aiormq.exceptions.ChannelLockedResource
"""Why a broker closes a channel, by AMQP's own names: 404, 403, 406, 405."""

HEARTBEAT_S: Final = 3
SILENT_S: Final = 5.0
"""After so long without a word from the broker it counts as gone; aiormq waits for 9 s or 12."""
CONNECT_TIMEOUT_S: Final = 10
NEXT_HOST_AFTER_S: Final = 3
"""How long a host of several may take to answer, before the next one is tried."""
SHUNNED_S: Final = 60.0
"""How long a host that failed is tried after all others."""
CLOSE_TIMEOUT_S: Final = 3
"""A broker that reads nothing does not answer a good-bye either."""
CLOSE_GONE_S: Final = 0.2
"""One that is gone gets none."""
ENDED_MEANWHILE: Final = "the connection ended in the middle of a call"


class Broker:
    """An open connection, and the news that it, or anything on it, is lost."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected: set[Channel] = set()
        self.alarm = Alarm(connection)

    @property
    def version(self) -> str:
        """The broker's own version."""
        return str(self._connection.server_properties.get("version", "unknown"))

    async def channel(self, *, confirms: bool = False, expendable: bool = False) -> Channel:
        """Open a channel; with confirms a publish waits for the broker, and raises on a return.

        An expendable one is for asking what the broker may refuse: its end is no loss.
        """
        try:
            channel = await self._connection.channel(
                publisher_confirms=confirms, on_return_raises=confirms
            )
        except RuntimeError as error:  # aiormq's word for a connection that is closed already
            raise ConnectionLost("the connection closed before a channel was open") from error
        assert isinstance(channel, Channel)  # noqa: S101 - the declared type knows less
        if expendable:
            self._expected.add(channel)
        channel.on_consumer_cancel_callbacks.add(self._consumer_cancelled)
        channel.closing.add_done_callback(lambda closing: self._channel_closed(channel, closing))
        return channel

    async def close_channel(self, channel: Channel) -> None:
        """Close a channel; what was delivered on it and not settled goes back, in order."""
        self._expected.add(channel)
        await channel.close()

    async def has_queue(self, queue: str) -> bool:
        """Whether there is a queue of that name, of whatever kind."""
        return await self._finds(lambda channel: channel.queue_declare(queue, passive=True))

    async def has_exchange(self, exchange: str) -> bool:
        """Whether there is an exchange of that name, of whatever kind."""
        return await self._finds(lambda channel: channel.exchange_declare(exchange, passive=True))

    async def _finds(self, ask: Callable[[Channel], Awaitable[object]]) -> bool:
        """Whether what is asked for is there; where it isn't, the channel ends with that."""
        channel = await self.channel(expendable=True)
        try:
            await ask(channel)
        except EntityNotFound:
            return False
        await channel.close()
        return True

    def is_lost(self) -> bool:
        """Whether anything on this connection is lost."""
        return self._lost.done()

    async def wait_lost(self) -> None:
        """Return never; raise ConnectionLost once anything on this connection is lost."""
        await asyncio.shield(self._lost)

    def _consumer_cancelled(self, frame: Basic.Cancel) -> None:
        self._fail(f"the broker cancelled the consumer {frame.consumer_tag}")

    def _channel_closed(self, channel: Channel, closing: "asyncio.Future[object]") -> None:
        if channel not in self._expected:
            self._fail(str(closing_reason(closing)) or "the broker closed the connection")
        self._expected.discard(channel)

    def _fail(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_exception(ConnectionLost(reason))
            self._lost.exception()  # retrieved here, since perhaps nobody waits any more


def closing_reason(closing: "asyncio.Future[object]") -> BaseException | None:
    """Return why a channel closed, where it is known."""
    return None if closing.cancelled() else closing.exception()


def virtual_host(url: str) -> str:
    """Read the virtual host off a URL, as aiormq does."""
    return URL(one_by_one(url)[0]).path[1:].replace("%2F", "/") or "/"


def _refuse_unverified(url: URL) -> None:
    """Refuse TLS that trusts anybody: passwords and patients' data would go to whoever answers."""
    if trusts_anybody(url):
        raise NotConnected(f"RABBITMQ_URL is wrong: {UNVERIFIED}")


@contextmanager
def only_our_cancellation() -> Iterator[None]:
    """Let a cancellation through that was meant for this task; raise ConnectionLost for another.

    aiormq ends the tasks of a connection that is stuck by cancelling them, and whoever waits for
    one of them gets that as if it were cancelled itself: no error, so nobody would begin anew.
    Where it knows no reason for a connection's end, it raises a bare Exception.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionLost(ENDED_MEANWHILE) from None
    except Exception as error:
        if type(error) is not Exception or error.args:
            raise
        raise ConnectionLost(ENDED_MEANWHILE) from None


async def looping(loop: Coroutine[None, None, None]) -> None:
    """Run a loop; to a group of tasks one that a library cancelled is no failure, and it is."""
    with only_our_cancellation():
        await loop


async def looping_together(*loops: Coroutine[None, None, None]) -> None:
    """Run loops until one of them raises, and raise that; the others are cancelled then."""
    try:
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(looping(loop))
    except BaseExceptionGroup as failures:
        raise first_cause(failures)  # noqa: B904 - it keeps its own cause


class _Connection(aio_pika.Connection):
    """One that nothing happens to when it is forgotten, which may be in a thread without a loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the library's own
        super().__init__(*args, **kwargs)
        self.wire = self.kwargs["transport_factory"] = Wire()

    def __del__(self) -> None:
        """Leave what was never open as it is; what is open is closed where it was opened."""


@asynccontextmanager
async def connect(url: str, *, name: str, heartbeat_s: int = HEARTBEAT_S) -> AsyncIterator[Broker]:
    """Connect under a name that operators see in the broker's list of connections.

    Of several hosts the next one is tried where one does not answer, the last to fail at the end.

    The broker takes this side for dead after two to three heartbeats without a word.
    Raises NotConnected where the URL must be mended.
    """
    with only_our_cancellation():
        async with _connected(url, name, heartbeat_s) as broker:
            yield broker


@asynccontextmanager
async def _connected(url: str, name: str, heartbeat_s: int) -> AsyncIterator[Broker]:
    read_odd_properties()
    read_in_one_go()
    host, connection = await _dial(url, {"name": name, "heartbeat": str(heartbeat_s)})
    losing: asyncio.Future[object] | None = None
    try:
        transport = connection.transport
        if transport is None:
            raise ConnectionLost("the connection closed while it was opened")
        setattr(transport.connection, _SILENCE, SILENT_S)
        assert isinstance(connection, _Connection)  # noqa: S101 - the library's type knows less
        keep_wire(transport.connection, connection.wire)
        losing = transport.connection.closing
        losing.add_done_callback(partial(_ended, host))
        yield Broker(transport.connection)
    finally:
        is_gone = losing is None or losing.done()
        if losing is not None:
            losing.cancel()  # this observer alone
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GONE_S if is_gone else CLOSE_TIMEOUT_S):
                await connection.close()


_failed_at: Final[dict[str, float]] = {}
"""When a host of several last failed, by the monotonic clock."""


def _ended(host: str, losing: "asyncio.Future[object]") -> None:
    """Note that a host failed; not one that ended a connection for what was sent on it.

    It does so for a reply to whom another host's end took away. Were it tried last for that, the
    one that is frozen would be tried before it.
    """
    refused = aiormq.exceptions.ConnectionInternalError
    if not losing.cancelled() and not isinstance(losing.exception(), refused):
        _failed_at[host] = monotonic()


def _best_first(hosts: Sequence[str]) -> list[str]:
    """Sort out who failed lately; chance spreads the connections over the others."""
    now = monotonic()

    def failed_at(host: str) -> float:
        at = _failed_at.get(host, 0.0)
        return at if now - at < SHUNNED_S else 0.0

    return sorted(sample(hosts, len(hosts)), key=failed_at)


async def _dial(
    url: str, parameters: Mapping[str, str]
) -> tuple[str, aio_pika.abc.AbstractConnection]:
    """Connect to one of the hosts; raises what the last one said, or what an operator can mend."""
    told: list[BaseException] = []
    *first, last = _best_first(one_by_one(url))
    for host in (*first, last):
        _refuse_unverified(URL(host))
        seconds = NEXT_HOST_AFTER_S if host in first else CONNECT_TIMEOUT_S
        try:
            with explained(BROKER):
                address = URL(host).update_query(parameters)
                return host, await aio_pika.connect(
                    address, timeout=seconds, connection_class=_Connection
                )
        except BROKER_ERRORS as error:
            _failed_at[host] = monotonic()
            told.append(error)
    raise next((error for error in told if isinstance(error, NotConnected)), told[-1])


async def consume(
    channel: Channel, queue: str, prefetch: int, on_delivery: Callable[[AmqpMessage], None]
) -> None:
    """Consume with at most `prefetch` unsettled deliveries."""
    await channel.basic_qos(prefetch_count=prefetch)
    tag = f"consent.{uuid4()}"
    hand_over(channel, tag, on_delivery)
    await channel.basic_consume(queue, on_delivery, consumer_tag=tag)  # type: ignore[arg-type] # it is never called


def ids_of(delivery: AmqpMessage) -> dict[str, str | None]:
    """Return what a line about one message names it by."""
    properties = delivery.header.properties
    return {"message_id": properties.message_id, "correlation_id": properties.correlation_id}
