"""The socket of a connection, written to past the AMQP library.

By itself the library hands what is to be written to a task of the connection, over a queue, and
that tells whoever waits: two more tasks to wake for each small batch.
"""

import struct
from asyncio import StreamReader, StreamWriter, WriteTransport
from typing import Any, Final
from weakref import WeakKeyDictionary

from aiormq import Channel
from aiormq.abc import AbstractConnection
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp.commands import Basic
from pamqp.constants import FRAME_END, FRAME_METHOD
from yarl import URL

from shared.rabbitmq.wire.deliveries import confirm_at_once

MOST_UNWRITTEN: Final = 65_536
"""Bytes that the broker has not read yet: from there on the library is waited for."""

_ACKNOWLEDGE: Final = struct.Struct(">BHIIQBB")
_ARGUMENTS: Final = 13
"""Bytes of an acknowledgement between its head and its end."""


class Wire(TransportFactory):
    """Opens the socket of one connection, and keeps it at hand."""

    def __init__(self) -> None:
        self.transport: WriteTransport
        self.reader: StreamReader

    async def create(
        self,
        url: URL,
        **kwargs: Any,  # noqa: ANN401 - the library's own
    ) -> tuple[StreamReader, StreamWriter]:
        """Connect as the library does by itself."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        self.reader, writer = await factory.create(url, **kwargs)
        self.transport = writer.transport
        return self.reader, writer

    def write(self, data: bytes) -> bool:
        """Write, unless the broker is slow to read; tell whether it is done."""
        transport = self.transport
        if transport.is_closing() or transport.get_write_buffer_size() > MOST_UNWRITTEN:
            return False
        transport.write(data)
        return True


_wires: Final[WeakKeyDictionary[AbstractConnection, Wire]] = WeakKeyDictionary()


def keep_wire(connection: AbstractConnection, wire: Wire) -> None:
    """Have the channels of a connection write to its socket."""
    _wires[connection] = wire


def write_at_once(channel: Channel, data: bytes) -> bool:
    """Write whole frames of a channel, unless something is to be written before them; tell so."""
    wire = _wires.get(channel.connection)
    if wire is None or channel.is_closed or not channel.write_queue.empty():
        return False
    return wire.write(data)


def hear_confirms_at_once(channel: Channel) -> None:
    """Tell who waits for this channel's confirms of them as they arrive."""
    wire = _wires.get(channel.connection)
    if wire is not None:
        confirm_at_once(wire.reader, channel)


async def acknowledge(channel: Channel, tag: int, *, multiple: bool = False) -> None:
    """Acknowledge a delivery, or all up to it."""
    frame = _ACKNOWLEDGE.pack(
        FRAME_METHOD, channel.number, _ARGUMENTS, Basic.Ack.index, tag, multiple, FRAME_END
    )
    if not write_at_once(channel, frame):
        await channel.basic_ack(tag, multiple=multiple, wait=False)
