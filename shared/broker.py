"""One connection to RabbitMQ and its channels, by aio-pika's underlay.

aio-pika wraps every message in an object and a task of its own. What carries every command and
event uses the channel underneath, which aio-pika hands out for such purposes. A broken connection
is not mended in place: whoever used it lets go of all that was in hand and begins anew.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aio_pika
import aiormq
from aiormq.abc import AbstractConnection, DeliveredMessage
from pamqp.commands import Basic
from yarl import URL

from shared.odd_properties import read_odd_properties
from shared.refusals import BROKER, explained

Channel = aiormq.Channel
Delivery = DeliveredMessage
Properties = Basic.Properties

HEARTBEAT_S: Final = 5
CONNECT_TIMEOUT_S: Final = 10
PUBLISH_WINDOW: Final = 100
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
        reason = None if closing.cancelled() else closing.exception()
        if channel not in self._expected:
            self._fail(str(reason) or "the broker closed the connection")

    def _fail(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_exception(ConnectionLost(reason))
            self._lost.exception()  # retrieved here, since perhaps nobody waits any more


def virtual_host(url: str) -> str:
    """Read the virtual host off a URL, as aiormq does."""
    return URL(url).path[1:].replace("%2F", "/") or "/"


@asynccontextmanager
async def connect(url: str, *, name: str) -> AsyncIterator[Broker]:
    """Connect under a name that operators see in the broker's list of connections.

    Raises NotConnected where the URL must be mended.
    """
    read_odd_properties()
    address = URL(url).update_query({"name": name, "heartbeat": str(HEARTBEAT_S)})
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
        window = messages[start : start + PUBLISH_WINDOW]
        await asyncio.gather(*(publish(channel, one, mandatory=True) for one in window))
