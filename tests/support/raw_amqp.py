"""Publishes what no client library would: properties and keys written byte by byte."""

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pamqp import commands, frame, header
from pamqp.base import Frame
from yarl import URL

FLAGS = {
    "content_type": 1 << 15,
    "content_encoding": 1 << 14,
    "headers": 1 << 13,
    "delivery_mode": 1 << 12,
    "priority": 1 << 11,
    "correlation_id": 1 << 10,
    "reply_to": 1 << 9,
    "expiration": 1 << 8,
    "message_id": 1 << 7,
    "timestamp": 1 << 6,
    "type": 1 << 5,
    "user_id": 1 << 4,
    "app_id": 1 << 3,
}
"""The properties in the order in which they travel."""
METHOD, HEADER, BODY, END = 1, 2, 3, b"\xce"
CHANNEL = 1


def short(text: bytes) -> bytes:
    """Encode a short string, whatever it holds."""
    return bytes([len(text)]) + text


def table(*fields: tuple[bytes, bytes]) -> bytes:
    """Encode a table of names and values; each value begins with the letter of its type."""
    content = b"".join(short(name) + value for name, value in fields)
    return struct.pack(">I", len(content)) + content


class Refused(Exception):
    """The broker closed the channel or the connection instead of confirming."""


@dataclass
class RawPublisher:
    """A connection with one channel that confirms."""

    wire: socket.socket

    def publish(
        self, exchange: bytes, key: bytes, properties: Mapping[str, bytes], body: bytes
    ) -> None:
        """Publish, and return when the broker has it; raises Refused."""
        method = b"\x00\x3c\x00\x28\x00\x00" + short(exchange) + short(key) + b"\x00"
        flags = sum(FLAGS[name] for name in properties)
        values = b"".join(properties[name] for name in FLAGS if name in properties)
        content = struct.pack(">HHQH", 60, 0, len(body), flags) + values
        self.wire.sendall(
            _frame(METHOD, method) + _frame(HEADER, content) + (body and _frame(BODY, body))
        )
        answer = self.read()
        if not isinstance(answer, commands.Basic.Ack):
            raise Refused(f"{answer.name}: {getattr(answer, 'reply_text', '')}")

    def call(self, method: Frame, channel: int = CHANNEL) -> Frame:
        """Send a method and return the answer."""
        self.wire.sendall(frame.marshal(method, channel))
        return self.read()

    def read(self) -> Frame:
        """Read one method."""
        while True:
            head = self._exactly(7)
            _, _, size = frame.frame_parts(head)
            _, _, read = frame.unmarshal(head + self._exactly((size or 0) + 1))
            if isinstance(read, Frame):
                return read

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.wire.recv(size - len(data))
            if not more:
                raise Refused("the connection was closed")
            data += more
        return data


@contextmanager
def open_raw_publisher(url: str) -> Iterator[RawPublisher]:
    """Connect by hand."""
    address = URL(url)
    with socket.create_connection((address.host or "", address.port or 5672), timeout=10) as wire:
        publisher = RawPublisher(wire)
        wire.sendall(header.ProtocolHeader().marshal())
        publisher.read()
        publisher.call(
            commands.Connection.StartOk(
                client_properties={}, response=f"\0{address.user}\0{address.password}"
            ),
            channel=0,
        )
        tune = commands.Connection.TuneOk(channel_max=2047, frame_max=131_072, heartbeat=0)
        wire.sendall(frame.marshal(tune, 0))
        vhost = address.path.removeprefix("/") or "/"
        publisher.call(commands.Connection.Open(virtual_host=vhost), channel=0)
        publisher.call(commands.Channel.Open())
        publisher.call(commands.Confirm.Select())
        yield publisher


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, CHANNEL, len(payload)) + payload + END
