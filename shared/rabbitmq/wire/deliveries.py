"""Reads deliveries in one go: from what has arrived straight to who consumes them.

By itself the AMQP library takes three reads for each of a message's frames, hands them through two
queues and starts a task for each message: more than half of what a message costs a worker. Here
whatever arrives is cut into frames at once, where the loop hands it to the stream, and a message
that is complete is handed over on the spot: no task is woken for it. All other frames go the
library's own way, in their order.
"""

import struct
from asyncio import StreamReader
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from time import monotonic
from typing import Final
from weakref import WeakValueDictionary

import aiormq.connection
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp import decode
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.constants import FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_METHOD
from pamqp.exceptions import PAMQPException
from pamqp.frame import FrameTypes, unmarshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

OnDelivery = Callable[[DeliveredMessage], None]
Frame = tuple[int, int, FrameTypes]

_HEAD: Final = struct.Struct(">BHI")
_TAG: Final = struct.Struct(">QB")
_CONTENT: Final = struct.Struct(">HHQH")
_MORE_FLAGS: Final = 1
_UNREADABLE: Final = (PAMQPException, ValueError, IndexError, struct.error)
_TEXT: Final = "shortstr"
_DELIVER: Final = Basic.Deliver.index.to_bytes(4)
_CONFIRM: Final = Basic.Ack.index.to_bytes(4)
_AROUND: Final = _HEAD.size + 1
"""Bytes of a frame before and behind what it holds."""
_AT_ONCE: Final = 65_536
_ALIVE: Final = (_AROUND, 0, Heartbeat())
"""Tells the library that the broker was heard; it does nothing else with it."""
_TELL_EVERY_S: Final = 0.5
_SOMETHING: Final = b"."
"""Wakes who waits for the stream."""

_consumers: Final[dict[str, tuple[aiormq.Channel, OnDelivery]]] = {}
"""By consumer tag, which is unique."""
_receivers: Final[WeakValueDictionary[int, "_Receiver"]] = WeakValueDictionary()
"""By the id of the stream that each of them reads, and keeps."""


def read_in_one_go() -> None:
    """Have this process read so from here on. Doing it again changes nothing."""
    aiormq.connection.FrameReceiver = _Receiver  # type: ignore[misc]


def hand_over(channel: aiormq.Channel, consumer_tag: str, on_delivery: OnDelivery) -> None:
    """Call this with each delivery to a consumer, as long as its channel is open."""
    _consumers[consumer_tag] = channel, on_delivery
    channel.closing.add_done_callback(lambda _: _consumers.pop(consumer_tag, None))


def confirm_at_once(reader: StreamReader, channel: aiormq.Channel) -> None:
    """Tell who waits for a confirm on this channel of it on the spot, as long as all are taken."""
    confirming = _receivers[id(reader)].confirming
    confirming[channel.number] = channel

    def forget(_: object) -> None:
        if confirming.get(channel.number) is channel:
            del confirming[channel.number]

    channel.closing.add_done_callback(forget)


class _UnderWay:
    """A message of which some frames have not arrived yet."""

    __slots__ = ("_consumer", "_delivery", "_header", "_missing", "_parts")

    def __init__(
        self, delivery: Basic.Deliver, consumer: tuple[aiormq.Channel, OnDelivery]
    ) -> None:
        self._delivery = delivery
        self._consumer = consumer
        self._header: ContentHeader
        self._parts: list[bytes] = []
        self._missing = 0

    def add(self, frame: FrameTypes) -> bool:
        """Take the next frame; hand the message over with the last one, and say so."""
        match frame:
            case ContentHeader():
                self._header, self._missing = frame, frame.body_size
            case ContentBody():
                self._parts.append(frame.value)
                self._missing -= len(frame.value)
            case _:
                raise InvalidFrameError(f"{frame.name} in the middle of a message")
        if self._missing > 0:
            return False
        channel, on_delivery = self._consumer
        body = b"".join(self._parts)
        on_delivery(DeliveredMessage(self._delivery, self._header, body, channel))
        return True


class _Receiver(aiormq.connection.FrameReceiver):
    """Cuts what has arrived into frames, and keeps deliveries to itself."""

    def __init__(self, reader: StreamReader) -> None:
        super().__init__(reader)
        self.confirming: dict[int, aiormq.Channel] = {}
        """Channels whose confirms are told on the spot, by their numbers."""
        _receivers[id(reader)] = self
        self._wake = reader.feed_data
        self._arrived = b""
        self._at = 0
        """Up to here it is read."""
        self._under_way: dict[int, _UnderWay] = {}
        self._others: deque[Frame] = deque()
        self._broken: InvalidFrameError | None = None
        self._is_open = False
        self._told_at = 0.0

    async def __anext__(self) -> Frame:
        """Return the next frame that is no part of a delivery, once the connection is open."""
        if not self._is_open:
            self._take_over()
        while not self._others:
            if self._broken:
                raise self._broken
            await self._wait()
            if not self._others and not self._broken:
                return _ALIVE
        return self._others.popleft()

    def _take_over(self) -> None:
        """From here on, read what arrives instead of the stream, which is only woken."""
        self._is_open = True
        self.reader.feed_data = self._read  # type: ignore[method-assign, assignment]
        buffer: bytearray = self.reader._buffer  # type: ignore[attr-defined] # noqa: SLF001
        self._cut_up(bytes(buffer))
        buffer.clear()

    def _read(self, data: bytes) -> None:
        """Take what has arrived; wake the library where it must know."""
        self._cut_up(data)
        now = monotonic()
        if self._others or self._broken or now - self._told_at > _TELL_EVERY_S:
            self._told_at = now
            self._wake(_SOMETHING)

    def _cut_up(self, data: bytes) -> None:
        """Hand over each message that is complete now; leave the other frames to the library."""
        self._arrived, self._at = self._arrived[self._at :] + data, 0
        try:
            while (frame := self._cut()) is not None:
                if not (_is_taken(frame, self._under_way) or self._is_confirm(frame)):
                    self._others.append(frame)
        except InvalidFrameError as error:
            self._broken = error

    def _is_confirm(self, frame: Frame) -> bool:
        """Tell a confirm to who waits for it.

        What is refused, or comes back, the library tells later, in a task: from there on it tells
        all of that channel, so that a confirm which follows does not overtake it.
        """
        _, number, content = frame
        channel = self.confirming.get(number)
        if channel is None:
            return False
        if not isinstance(content, Basic.Ack):
            del self.confirming[number]
            return False
        confirmations = channel.confirmations
        last = content.delivery_tag or 0
        tags = [tag for tag in confirmations if tag <= last] if content.multiple else [last]
        for tag in tags:
            confirmation = confirmations.pop(tag, None)
            if confirmation is not None and not confirmation.done():
                confirmation.set_result(content)
        return True

    def _cut(self) -> Frame | None:
        """Cut off the next frame, if it has arrived as a whole."""
        data, at = self._arrived, self._at
        if len(data) - at < _AROUND:
            return None
        kind, channel, size = _HEAD.unpack_from(data, at)
        end = at + _AROUND + size
        if len(data) < end:
            return None
        if data[end - 1] != FRAME_END:
            raise InvalidFrameError("a frame has no end")
        self._at = end
        try:
            return end - at, channel, _read_content(kind, data[at:end])
        except _UNREADABLE as error:
            raise InvalidFrameError(str(error)) from error

    async def _wait(self) -> None:
        """Return when something was heard of the broker."""
        if self.reader.at_eof():
            raise StopAsyncIteration
        try:
            heard = await self.reader.read(_AT_ONCE)
        except OSError as error:
            raise AMQPConnectionError(f"the connection broke: {error!r}") from error
        if not heard:
            raise AMQPConnectionError("the server closed the connection")


def _read_content(kind: int, frame: bytes) -> FrameTypes:
    """Read what most frames are; the library takes three times as long, and reads the others."""
    if kind == FRAME_METHOD:
        if frame.startswith(_DELIVER, _HEAD.size):
            return _read_delivery(frame[_HEAD.size :])
        if frame.startswith(_CONFIRM, _HEAD.size):
            tag, flags = _TAG.unpack_from(frame, _HEAD.size + len(_CONFIRM))
            return Basic.Ack(tag, multiple=bool(flags & 1))
    if kind == FRAME_BODY:
        return ContentBody(frame[_HEAD.size : -1])
    if kind == FRAME_HEADER:
        return _read_header(frame[_HEAD.size :])
    _, _, content = unmarshal(frame)
    return content


def _read_delivery(frame: bytes) -> Basic.Deliver:
    """Read what is first of a delivery; the library takes three times as long."""
    consumer_tag, at = _read_text(frame, len(_DELIVER))
    number, redelivered = _TAG.unpack_from(frame, at)
    exchange, at = _read_text(frame, at + _TAG.size)
    routing_key, _ = _read_text(frame, at)
    delivery = Basic.Deliver(consumer_tag, number, bool(redelivered & 1), "", routing_key)
    delivery.exchange = exchange
    return delivery


def _read_header(frame: bytes) -> ContentHeader:
    """Read a message's properties; the library takes five times as long."""
    _, _, size, flags = _CONTENT.unpack_from(frame)
    header, at = ContentHeader(body_size=size), _CONTENT.size
    if flags & _MORE_FLAGS:
        header.unmarshal(frame)
        return header
    for name, kind in _given(flags):
        value: object
        if kind == _TEXT:
            value, at = _read_text(frame, at)
        else:
            size, value = decode.METHODS[kind](frame[at:])
            at += size
        setattr(header.properties, name, value)
    return header


@lru_cache(maxsize=64)
def _given(flags: int) -> list[tuple[str, str]]:
    """List the properties that a message has, and how AMQP calls what they are."""
    names = (name for name, flag in Basic.Properties.flags.items() if flags & flag)
    return [(name, Basic.Properties.amqp_type(name)) for name in names]


def _read_text(frame: bytes, at: int) -> tuple[str, int]:
    """Read a short text, and where it ends."""
    end = at + 1 + frame[at]
    try:
        return frame[at + 1 : end].decode(), end
    except UnicodeDecodeError:
        return decode.METHODS[_TEXT](frame[at:end])[1], end  # type: ignore[return-value] # it reads text alone


def _is_taken(frame: Frame, under_way: dict[int, _UnderWay]) -> bool:
    """Whether a frame is part of a delivery to one of ours."""
    _, channel, content = frame
    message = under_way.get(channel)
    if message is not None:
        if message.add(content):
            del under_way[channel]
        return True
    if isinstance(content, Basic.Deliver):
        consumer = _consumers.get(content.consumer_tag or "")
        if consumer is not None:
            under_way[channel] = _UnderWay(content, consumer)
            return True
    return False
