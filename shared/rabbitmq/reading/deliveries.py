"""Reads deliveries in one go: from what has arrived straight to who consumes them.

By itself the AMQP library takes three reads for each of a message's frames, hands them through two
queues and starts a task for each message: more than half of what a message costs a worker. Here
whatever has arrived is cut into frames at once, and a message that is complete is handed over on
the spot. All other frames go the library's own way, in their order.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import aiormq.connection
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp import decode
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.constants import FRAME_BODY, FRAME_END, FRAME_HEADER
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
_AROUND: Final = _HEAD.size + 1
"""Bytes of a frame before and behind what it holds."""
_AT_ONCE: Final = 65_536
_ALIVE: Final = (_AROUND, 0, Heartbeat())
"""Tells the library that the broker was heard; it does nothing else with it."""

_consumers: Final[dict[str, tuple[aiormq.Channel, OnDelivery]]] = {}
"""By consumer tag, which is unique."""


def read_in_one_go() -> None:
    """Have this process read so from here on. Doing it again changes nothing."""
    aiormq.connection.FrameReceiver = _Receiver  # type: ignore[misc]


def hand_over(channel: aiormq.Channel, consumer_tag: str, on_delivery: OnDelivery) -> None:
    """Call this with each delivery to a consumer, as long as its channel is open."""
    _consumers[consumer_tag] = channel, on_delivery
    channel.closing.add_done_callback(lambda _: _consumers.pop(consumer_tag, None))


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

    _arrived = b""
    _at = 0
    """Up to here it is read."""

    async def __anext__(self) -> Frame:
        """Return the next frame that is no part of a delivery, once the connection is open."""
        under_way = self.__dict__.setdefault("_under_way", dict[int, _UnderWay]())
        while True:
            heard = False
            while (frame := self._cut()) is not None:
                if not _is_taken(frame, under_way):
                    return frame
                heard = True
            if heard:
                return _ALIVE
            await self._read_more()

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
            if kind == FRAME_BODY:
                return end - at, channel, ContentBody(data[at + _HEAD.size : end - 1])
            if kind == FRAME_HEADER:
                return end - at, channel, _read_header(data[at + _HEAD.size : end])
            if data.startswith(_DELIVER, at + _HEAD.size):
                return end - at, channel, _read_delivery(data[at + _HEAD.size : end])
            return unmarshal(data[at:end])
        except _UNREADABLE as error:
            raise InvalidFrameError(str(error)) from error

    async def _read_more(self) -> None:
        if self.reader.at_eof():
            raise StopAsyncIteration
        try:
            more = await self.reader.read(_AT_ONCE)
        except OSError as error:
            raise AMQPConnectionError(f"the connection broke: {error!r}") from error
        if not more:
            raise AMQPConnectionError("the server closed the connection")
        self._arrived, self._at = self._arrived[self._at :] + more, 0


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
