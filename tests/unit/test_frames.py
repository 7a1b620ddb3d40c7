"""What is read and written past the AMQP library is, byte for byte, what that makes of it."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from unittest.mock import Mock

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from shared.rabbitmq.wire.deliveries import (
    _read_header,
    _Receiver,
    confirm_at_once,
    hand_over,
)
from shared.rabbitmq.wire.frames import header_frame
from shared.rabbitmq.wire.lenient_decoding import SUBSTITUTE, read_odd_properties
from shared.rabbitmq.wire.socket import Wire, acknowledge, keep_wire

OURS: Final = "a-consumer-of-ours"
THEIRS: Final = "a-consumer-of-the-library"
texts = st.none() | st.text(max_size=60)
properties = st.builds(
    Basic.Properties,
    content_type=texts,
    delivery_mode=st.sampled_from((None, 1, 2)),
    correlation_id=texts,
    message_id=texts,
    message_type=texts,
    headers=st.none() | st.dictionaries(st.sampled_from("ab"), st.integers(0, 9)),
    reply_to=texts,
    user_id=st.none() | st.just("u"),
    priority=st.none() | st.integers(0, 9),
    timestamp=st.none() | st.just(datetime(2026, 11, 26, tzinfo=UTC)),
)


@given(properties, st.binary(max_size=20), st.integers(1, 2000))
def test_a_header_is_written_as_the_library_writes_it(
    properties: Basic.Properties, body: bytes, channel: int
) -> None:
    header = ContentHeader(body_size=len(body), properties=properties)
    assert header_frame(channel, properties, len(body)) == marshal(header, channel)


@given(properties, st.integers(0, 2**40))
def test_a_header_is_read_as_the_library_reads_it(properties: Basic.Properties, size: int) -> None:
    frame = marshal(ContentHeader(body_size=size, properties=properties), 1)
    theirs = unmarshal(frame)[2]
    assert isinstance(theirs, ContentHeader)
    ours = _read_header(frame[7:])
    assert (ours.body_size, ours.properties) == (size, theirs.properties)


def test_a_property_that_is_no_text_is_read_with_substitutes() -> None:
    read_odd_properties()
    written = Basic.Properties(content_type="json", message_id="..", message_type="GrantConsent")
    frame = marshal(ContentHeader(body_size=0, properties=written), 1).replace(b"..", b"\xff\xfe")
    read = _read_header(frame[7:]).properties
    texts = read.content_type, read.message_id, read.message_type
    assert texts == ("json", 2 * SUBSTITUTE, "GrantConsent")


def frames(tag: str, number: int, body: bytes, channel: int, part: int = 7) -> Iterator[bytes]:
    """Write a delivery as a broker does, its body in parts."""
    key = f"grant.{number}"
    yield marshal(Basic.Deliver(tag, number, bool(number % 2), "consent.commands", key), channel)
    header = ContentHeader(body_size=len(body), properties=Basic.Properties(message_id=str(number)))
    yield marshal(header, channel)
    for start in range(0, len(body), part):
        yield marshal(ContentBody(body[start : start + part]), channel)


async def read(
    pieces: Sequence[bytes], confirmed: Mock | None = None
) -> tuple[list[DeliveredMessage], list[Any], type[Any]]:
    """Return what was handed over, what the library was given, and how it ended."""
    handed: list[DeliveredMessage] = []
    channel = Mock()
    hand_over(channel, OURS, handed.append)
    stream = asyncio.StreamReader()
    receiver, given_on = _Receiver(stream), list[Any]()
    if confirmed:
        confirm_at_once(stream, confirmed)

    async def feed() -> None:
        for piece in pieces:
            stream.feed_data(piece)
            await asyncio.sleep(0)
        stream.feed_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        try:
            async for _, number, frame in receiver:
                if not isinstance(frame, Heartbeat):
                    given_on.append((number, frame))
            ended: type[Any] = StopAsyncIteration
        except (AMQPConnectionError, InvalidFrameError) as error:
            ended = type(error)
    (forget,) = channel.closing.add_done_callback.call_args.args
    forget(None)
    return handed, given_on, ended


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 5, 64, 10_000])
async def test_deliveries_are_handed_over_however_they_arrive_and_the_rest_is_the_librarys(
    size: int,
) -> None:
    ack = marshal(Basic.Ack(3, multiple=True), 9)
    one, two = list(frames(OURS, 1, b"x" * 20, 4)), list(frames(OURS, 2, b"", 5))
    other = list(frames(THEIRS, 3, b"theirs", 6))
    woven = [one[0], ack, two[0], one[1], other[0], *one[2:], *other[1:], two[1]]
    handed, given_on, ended = await read(cut(b"".join([*woven, Heartbeat().marshal()]), size))
    assert [(m.delivery_tag, m.redelivered, m.exchange, m.routing_key, m.body) for m in handed] == [
        (1, True, "consent.commands", "grant.1", b"x" * 20),
        (2, False, "consent.commands", "grant.2", b""),
    ]
    assert [m.header.properties.message_id for m in handed] == ["1", "2"]
    kinds = [(number, type(frame)) for number, frame in given_on]
    assert kinds == [(9, Basic.Ack), (6, Basic.Deliver), (6, ContentHeader), (6, ContentBody)]
    assert ended in {AMQPConnectionError, StopAsyncIteration}


@pytest.mark.parametrize("method", [Basic.Deliver, Basic.Ack])
async def test_a_body_that_begins_as_a_method_does_is_a_body(method: type[Any]) -> None:
    body = method.index.to_bytes(4) + b" and so on"
    handed, given_on, _ = await read([b"".join(frames(OURS, 1, body, 4, part=99))])
    assert ([message.body for message in handed], given_on) == ([body], [])


async def test_confirms_are_told_on_the_spot_until_one_is_refused_and_then_in_order() -> None:
    waiting = {tag: asyncio.get_running_loop().create_future() for tag in range(1, 7)}
    channel = Mock(number=9, confirmations=dict(waiting))
    told = [Basic.Ack(1), Basic.Ack(3, multiple=True), Basic.Nack(4), Basic.Ack(5)]
    elsewhere = marshal(Basic.Ack(6), 8)
    pieces = [marshal(frame, 9) for frame in told]
    _, given_on, _ = await read([b"".join(pieces[:2]), elsewhere, *pieces[2:]], channel)
    assert [tag for tag, one in waiting.items() if one.done()] == [1, 2, 3]
    kinds = [(number, type(frame), frame.delivery_tag) for number, frame in given_on]
    assert kinds == [(8, Basic.Ack, 6), (9, Basic.Nack, 4), (9, Basic.Ack, 5)]


@pytest.mark.parametrize(("tag", "multiple"), [(1, True), (2**40, False)])
async def test_an_acknowledgement_is_written_as_the_library_writes_it(
    tag: int, multiple: bool
) -> None:
    connection, transport = Mock(), Mock()
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 0
    channel = Mock(number=7, connection=connection, is_closed=False)
    wire = Wire()
    wire.transport = transport
    keep_wire(connection, wire)
    await acknowledge(channel, tag, multiple=multiple)
    transport.write.assert_called_once_with(marshal(Basic.Ack(tag, multiple), 7))


@pytest.mark.parametrize("broken", [b"\x01\0\4\0\0\0\1xy", marshal(Basic.Ack(1), 4)])
async def test_what_is_no_frame_or_stands_within_a_message_ends_the_connection(
    broken: bytes,
) -> None:
    begun = next(frames(OURS, 1, b"x", 4))
    handed, _, ended = await read([begun + broken])
    assert (handed, ended) == ([], InvalidFrameError)
