"""One connection to RabbitMQ and its channels, by aio-pika's underlay.

aio-pika wraps every message in an object and a task of its own. What carries every command and
event uses the channel underneath, which aio-pika hands out for such purposes. A broken connection
is not mended in place: whoever used it lets go of all that was in hand and begins anew.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from time import monotonic
from typing import Final
from uuid import uuid4

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

from shared.errors import NotConnected
from shared.errors.connection import BROKER, ConnectionLost, explained
from shared.rabbitmq.alarm import Alarm
from shared.rabbitmq.lenient_decoding import read_odd_properties

Channel = aiormq.Channel
AmqpMessage = DeliveredMessage
Properties = Basic.Properties

EntityNotFound = aiormq.exceptions.ChannelNotFoundEntity
AccessRefused = aiormq.exceptions.ChannelAccessRefused
PreconditionFailed = aiormq.exceptions.ChannelPreconditionFailed
ResourceLocked = aiormq.exceptions.ChannelLockedResource
"""Why a broker closes a channel, by AMQP's own names: 404, 403, 406, 405."""

HEARTBEAT_S: Final = 5
CONNECT_TIMEOUT_S: Final = 10
CLOSE_TIMEOUT_S: Final = 3
"""A broker that reads nothing does not answer a good-bye either."""
PUBLISH_WINDOW: Final = 250
"""Publishes in flight at once: one confirm for many makes aiormq walk all that are outstanding."""
PERSISTENT: Final = 2
RENEWED_AFTER_S: Final = 1.0
"""How long a channel is used at least, on which something was refused."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties


class Why(StrEnum):
    """Why the broker has not taken a message."""

    REFUSED = "refused"
    """A queue that it goes to is full, and set to say so."""
    UNROUTABLE = "unroutable"
    """There is no queue for it."""
    NO_EXCHANGE = "no_exchange"
    """What it is published to is missing itself."""
    UNANSWERED = "unanswered"
    """A queue that it goes to did not answer in time."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that was published and not taken."""

    message: Outgoing
    why: Why


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
        self._expected.discard(channel)

    def _fail(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_exception(ConnectionLost(reason))
            self._lost.exception()  # retrieved here, since perhaps nobody waits any more


def _reason(closing: "asyncio.Future[object]") -> BaseException | None:
    return None if closing.cancelled() else closing.exception()


def virtual_host(url: str) -> str:
    """Read the virtual host off a URL, as aiormq does."""
    return URL(url).path[1:].replace("%2F", "/") or "/"


def _refuse_unverified(url: URL) -> None:
    """Refuse TLS that trusts anybody: passwords and patients' data would go to whoever answers."""
    if url.scheme == "amqps" and url.query.get("no_verify_ssl", "0") != "0":
        raise NotConnected(
            "RABBITMQ_URL switches the check of the broker's certificate off (no_verify_ssl): "
            "leave that out, and name who signed it by cafile"
        )


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
    _refuse_unverified(URL(url))
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
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connection.close()


async def consume(
    channel: Channel, queue: str, prefetch: int, on_delivery: Callable[[AmqpMessage], None]
) -> None:
    """Consume with at most `prefetch` unsettled deliveries."""
    await channel.basic_qos(prefetch_count=prefetch)
    await channel.basic_consume(queue, on_delivery)  # type: ignore[arg-type] # it is wrapped


async def publish(channel: Channel, message: Outgoing, *, mandatory: bool = False) -> None:
    """Publish one message; on a channel with confirms, return when the broker has it.

    Raises ConnectionLost where the connection ends while the broker is blocked.
    """
    await _until_read(channel)
    await channel.basic_publish(
        message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        properties=message.properties,
        mandatory=mandatory,
        wait=False,
    )


async def _until_read(channel: Channel) -> None:
    """Wait while the broker reads nothing: what piled up would hold up this side's heartbeats."""
    await channel.connection.ready()
    if channel.connection.is_closed:
        raise ConnectionLost("the connection closed while the broker was blocked")


async def publish_in_order(
    channel: Channel, messages: Sequence[Outgoing], *, within: float | None = None
) -> list[Refused]:
    """Publish with confirms, window after window; return what was refused, in order.

    What is not confirmed `within` so many seconds counts as refused too, though it may arrive
    yet. A window holds nothing back: what follows a refused message is published all the same.
    Raises what ended the channel; of that window some may have arrived.
    """
    refused: list[Refused] = []
    for start in range(0, len(messages), PUBLISH_WINDOW):
        refused += await _publish_window(channel, messages[start : start + PUBLISH_WINDOW], within)
    return refused


class Outlet:
    """Publishes with confirms, on a channel of its own, which refusals do not end.

    A queue that refused a channel tells it when there is room again, but not when the policy that
    limited it is lifted. So after a refusal the next channel asks anew.
    """

    def __init__(self, broker: Broker, channel: Channel) -> None:
        self._broker = broker
        self._channel = channel
        self._opened_at = monotonic()
        self._refused = False
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def open(cls, broker: Broker) -> "Outlet":
        """Open its first channel."""
        return cls(broker, await _open_outlet(broker))

    async def publish(self, messages: Sequence[Outgoing], *, within: float) -> list[Refused]:
        """Publish as `publish_in_order` does."""
        async with self._one_at_a_time:
            if self._refused and monotonic() - self._opened_at > RENEWED_AFTER_S:
                await self._renew()
            try:
                refused = await publish_in_order(self._channel, messages, within=within)
            except aiormq.exceptions.ChannelNotFoundEntity:
                await self._renew()
                return [Refused(message, Why.NO_EXCHANGE) for message in messages]
            self._refused = self._refused or bool(refused)
            return refused

    async def _renew(self) -> None:
        former, self._channel = self._channel, await _open_outlet(self._broker)
        self._opened_at, self._refused = monotonic(), False
        if not former.is_closed:
            await self._broker.close_channel(former)


async def _open_outlet(broker: Broker) -> Channel:
    return await broker.channel(confirms=True, expendable=True)


async def publish_at_once(channel: Channel, messages: Sequence[Outgoing]) -> None:
    """Publish without confirms; return when all is written, as fast as the broker reads it."""
    if messages:
        await _until_read(channel)
        written = channel.create_future()
        async with channel.lock:
            await channel.write_queue.put(_as_one_write(channel, messages, drain_future=written))
        await written


class _Window:
    """Messages in flight; done when the broker has said of each whether it has it.

    aiormq keeps a future for each message, which is a third of what a publish costs; a light
    confirm stands in for it.
    """

    def __init__(self, messages: int) -> None:
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = messages
        self.confirms = [_Confirm(self) for _ in range(messages)]

    async def wait(self, within: float | None) -> None:
        """Wait for all confirms, or so many seconds; raises what ended the channel."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._done

    def count(self) -> None:
        """Note that another message's fate is known."""
        self._left -= 1
        if self._left == 0 and not self._done.done():
            self._done.set_result(None)

    def channel_closed(self, closing: "asyncio.Future[object]") -> None:
        """Fail, since nothing is confirmed any more."""
        if not self._done.done():
            self._done.set_exception(_reason(closing) or ConnectionLost("the channel closed"))


class _Confirm:
    """What the broker says of one message, told by aiormq as it would tell a future."""

    __slots__ = ("_window", "fate")

    def __init__(self, window: _Window) -> None:
        self._window = window
        self.fate: Why | None = Why.UNANSWERED
        """None once the broker has the message."""

    def done(self) -> bool:
        """Whether it was told already."""
        return self.fate is not Why.UNANSWERED

    def cancelled(self) -> bool:
        """It can't be."""
        return False

    def set_result(self, _: object) -> None:
        """The broker has it."""
        self._end(None)

    def set_exception(self, error: BaseException) -> None:
        """A queue refuses it, or it came back."""
        returned = isinstance(error, aiormq.exceptions.PublishError)
        self._end(Why.UNROUTABLE if returned else Why.REFUSED)

    def _end(self, fate: Why | None) -> None:
        if not self.done():
            self.fate = fate
            self._window.count()


async def _publish_window(
    channel: Channel, messages: Sequence[Outgoing], within: float | None
) -> list[Refused]:
    """Write a window in one go, and wait for its confirms.

    What aiormq keeps for each of its own publishes is kept for these too, by its public names:
    who waits for a confirm, and which publish a message that comes back belongs to.
    """
    window = _Window(len(messages))
    ids = _identified(messages)
    closing = channel.closing
    closing.add_done_callback(window.channel_closed)
    returns = channel.message_id_delivery_tag
    write = _as_one_write(channel, messages, mandatory=True)
    try:
        await _until_read(channel)
        async with channel.lock:
            await channel.write_queue.put(write)
            for message_id, confirm in zip(ids, window.confirms, strict=True):
                channel.delivery_tag += 1  # nothing is read from the broker before the next await
                channel.confirmations[channel.delivery_tag] = confirm  # type: ignore[assignment] # it stands in for a future
                returns[message_id] = channel.delivery_tag
        await window.wait(within)
    finally:
        closing.cancel()  # this observer alone
        for message_id in ids:
            returns.pop(message_id, None)
    return [
        Refused(message, confirm.fate)
        for message, confirm in zip(messages, window.confirms, strict=True)
        if confirm.fate is not None
    ]


def _identified(messages: Sequence[Outgoing]) -> list[str]:
    """Return the messages' ids, by which alone those that come back are known.

    One that has none gets one, and so does one that repeats another's: a sender may do either.
    """
    ids: dict[str, None] = {}
    for message in messages:
        properties = message.properties
        if not properties.message_id or properties.message_id in ids:
            properties.message_id = str(uuid4())
        ids[properties.message_id] = None
    return list(ids)


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


def ids_of(delivery: AmqpMessage) -> dict[str, str | None]:
    """Return what a line about one message names it by."""
    properties = delivery.header.properties
    return {"message_id": properties.message_id, "correlation_id": properties.correlation_id}
