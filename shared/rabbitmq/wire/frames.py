"""Writes a message as frames, byte for byte as the AMQP library does, in half of its time. Pure."""

from collections.abc import Iterator
from functools import lru_cache
from operator import attrgetter
from struct import Struct
from typing import Final

from pamqp.commands import Basic
from pamqp.constants import FRAME_BODY, FRAME_END_CHAR, FRAME_HEADER
from pamqp.frame import marshal
from pamqp.header import ContentHeader

_FRAME: Final = Struct(">BHI")
_HEADER: Final = Struct(">HHQH")
_BYTES: Final = [bytes((number,)) for number in range(256)]
_NAMES: Final = ("content_type", "delivery_mode", "correlation_id", "message_id", "message_type")
_USUAL: Final = attrgetter(*_NAMES)
_UNUSUAL: Final = attrgetter(
    *(name for name in Basic.Properties.attributes() if name not in _NAMES)
)
_NOT_GIVEN: Final = _UNUSUAL(Basic.Properties())
_FLAGS: Final = tuple(Basic.Properties.flags[name] for name in _NAMES)


def frames_of(
    channel: int, largest: int, exchange: str, routing_key: str,
    body: bytes, properties: Basic.Properties, mandatory: bool,
) -> Iterator[bytes]:  # fmt: skip
    """Write one message, piece by piece; of its body at most `largest` bytes in one frame."""
    yield _publish_frame(channel, exchange, routing_key, mandatory)
    yield header_frame(channel, properties, len(body))
    for start in range(0, len(body), largest):
        part = body[start : start + largest]
        yield _FRAME.pack(FRAME_BODY, channel, len(part))
        yield part
        yield FRAME_END_CHAR


@lru_cache(maxsize=1000)
def _publish_frame(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    frame = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    return marshal(frame, channel)


def header_frame(channel: int, properties: Basic.Properties, body_size: int) -> bytes:
    """Write a content header; usual properties alone take the library twice as long."""
    usual, unusual = _USUAL(properties), _UNUSUAL(properties)
    if unusual != _NOT_GIVEN:
        return marshal(ContentHeader(body_size=body_size, properties=properties), channel)
    flags, parts = 0, b""
    for value, flag in zip(usual, _FLAGS, strict=True):
        if value:
            flags |= flag
            if isinstance(value, str):
                data = value.encode()
                parts += _BYTES[len(data)] + data
            else:
                parts += _BYTES[value]
    frame = _FRAME.pack(FRAME_HEADER, channel, _HEADER.size + len(parts))
    head = _HEADER.pack(Basic.frame_id, 0, body_size, flags)
    return b"%b%b%b%b" % (frame, head, parts, FRAME_END_CHAR)
