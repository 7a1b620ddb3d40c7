"""One connection to RabbitMQ and its channels, by aio-pika's underlay.

aio-pika wraps every message in an object and a task of its own. What carries every command and
event uses the channel underneath, which aio-pika hands out for such purposes. A broken connection
is not mended in place: whoever used it lets go of all that was in hand and begins anew.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import aio_pika
import aiormq
from aiormq.abc import (
    AbstractConnection,
    ChannelFrame,
    DeliveredMessage,
)
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader
from yarl import URL

from shared.odd_properties import read_odd_properties
from shared.refusals import BROKER, explained

Channel = aiormq.Channel
Delivery = DeliveredMessage
Properties = Basic.Properties

HEARTBEAT_S: Final = 5
CONNECT_TIMEOUT_S: Final = 10
PUBLISH_WINDOW: Final = 250
"""Publishes in flight at once: one confirm for many makes aiormq walk all that are outstanding."""
PERSISTENT: Final = 2


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


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties


class Broker:
    """An open connection, and the news that it, or anything on it, is lost."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected: set[Channel] = set()

    @property
    def version(self) -> str:
        """The broker's own version."""
        return str(self._connection.server_properties.get("version", "unknown"))

    async def channel(self, *, confirms: bool = False, expendable: bool = False) -> Channel:
        """Open a channel; with confirms a publish waits for the broker, and raises on a return.

        An expendable one is for asking what the broker may refuse: its end is no loss.
        """
        channel = await self._connection.channel(
            publisher_confirms=confirms, on_return_raises=confirms
        )
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
            self._fail(str(_reason(closing)) or "the broker closed the connection")

    def _fail(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_exception(ConnectionLost(reason))
            self._lost.exception()  # retrieved here, since perhaps nobody waits any more


def _reason(closing: "asyncio.Future[object]") -> BaseException | None:
    return None if closing.cancelled() else closing.exception()


def virtual_host(url: str) -> str:
    """Read the virtual host off a URL, as aiormq does."""
    return URL(url).path[1:].replace("%2F", "/") or "/"


@contextmanager
def only_our_cancellation() -> Iterator[None]:
    """Let a cancellation through that was meant for this task; raise ConnectionLost for another.

    aiormq ends the tasks of a connection that is stuck by cancelling them, and whoever waits for
    one of them gets that as if it were cancelled itself: no error, so nobody would begin anew.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionLost("the connection ended in the middle of a call") from None


@asynccontextmanager
async def connect(url: str, *, name: str, heartbeat_s: int = HEARTBEAT_S) -> AsyncIterator[Broker]:
    """Connect under a name that operators see in the broker's list of connections.

    Whichever side hears nothing for three heartbeats takes the other for dead.
    Raises NotConnected where the URL must be mended.
    """
    with only_our_cancellation():
        async with _connected(url, name, heartbeat_s) as broker:
            yield broker


@asynccontextmanager
async def _connected(url: str, name: str, heartbeat_s: int) -> AsyncIterator[Broker]:
    read_odd_properties()
    address = URL(url).update_query({"name": name, "heartbeat": str(heartbeat_s)})
    with explained(BROKER):
        connection = await aio_pika.connect(address, timeout=CONNECT_TIMEOUT_S)
    try:
        transport = connection.transport
        if transport is None:
            raise ConnectionLost("the connection closed while it was opened")
        yield Broker(transport.connection)
    finally:
        await connection.close()


async def consume(
    channel: Channel, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]
) -> None:
    """Consume with at most `prefetch` unsettled deliveries."""
    await channel.basic_qos(prefetch_count=prefetch)
    await channel.basic_consume(queue, on_delivery)  # type: ignore[arg-type] # it is wrapped


async def publish(channel: Channel, message: Outgoing, *, mandatory: bool = False) -> None:
    """Publish one message; on a channel with confirms, return when the broker has it."""
    await channel.basic_publish(
        message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        properties=message.properties,
        mandatory=mandatory,
        wait=False,
    )


async def publish_in_order(channel: Channel, messages: Sequence[Outgoing]) -> None:
    """Publish with confirms, window after window; return when the broker has all of them.

    Each must reach a queue. Raises what the first failing publish raised; of those that
    follow it in its window, some may have arrived.
    """
    for start in range(0, len(messages), PUBLISH_WINDOW):
        await _publish_window(channel, messages[start : start + PUBLISH_WINDOW])


async def publish_at_once(channel: Channel, messages: Sequence[Outgoing]) -> None:
    """Publish without confirms; return when all is written, as fast as the broker reads it."""
    if messages:
        written = channel.create_future()
        async with channel.lock:
            await channel.write_queue.put(_as_one_write(channel, messages, drain_future=written))
        await written


class _Confirms(asyncio.Future[None]):
    """Done when every message of a window is confirmed, or the first one failed.

    aiormq keeps a future for each message; this one stands in for all of its window, which spares
    a third of what a publish costs.
    """

    def __init__(self, messages: int) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._left = messages

    def set_result(self, _: object) -> None:
        """Count one confirm."""
        self._left -= 1
        if self._left == 0:
            super().set_result(None)

    def channel_closed(self, closing: "asyncio.Future[object]") -> None:
        """Fail, since nothing is confirmed any more."""
        if not self.done():
            self.set_exception(_reason(closing) or ConnectionLost("the channel closed"))


async def _publish_window(channel: Channel, window: Sequence[Outgoing]) -> None:
    """Write a window in one go, and wait for its confirms.

    What aiormq keeps for each of its own publishes is kept for these too, by its public names:
    who waits for a confirm, and which publish a message that comes back belongs to.
    """
    confirms = _Confirms(len(window))
    closing = channel.closing
    closing.add_done_callback(confirms.channel_closed)
    returns = channel.message_id_delivery_tag
    ids = [str(message.properties.message_id) for message in window]
    write = _as_one_write(channel, window, mandatory=True)
    try:
        async with channel.lock:
            await channel.write_queue.put(write)
            for message_id in ids:  # nothing is read from the broker before the next await
                channel.delivery_tag += 1
                channel.confirmations[channel.delivery_tag] = confirms
                returns[message_id] = channel.delivery_tag
        await confirms
    finally:
        closing.cancel()  # this observer alone
        for message_id in ids:
            returns.pop(message_id, None)


def _as_one_write(
    channel: Channel,
    messages: Iterable[Outgoing],
    *,
    mandatory: bool = False,
    drain_future: "asyncio.Future[object] | None" = None,
) -> ChannelFrame:
    number, largest = channel.number, channel.max_content_size
    payload = b"".join(
        frame
        for message in messages
        for frame in _frames(message, number, largest, mandatory=mandatory)
    )
    return ChannelFrame(payload, should_close=False, drain_future=drain_future)


def _frames(message: Outgoing, number: int, largest: int, *, mandatory: bool) -> Iterator[bytes]:
    yield _publish_frame(number, message.exchange, message.routing_key, mandatory)
    yield marshal(ContentHeader(body_size=len(message.body), properties=message.properties), number)
    for start in range(0, len(message.body), largest):
        yield marshal(ContentBody(message.body[start : start + largest]), number)


@lru_cache(maxsize=1000)
def _publish_frame(number: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    frame = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    return marshal(frame, number)
