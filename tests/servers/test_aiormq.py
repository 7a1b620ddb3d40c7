"""What is relied on of aiormq, whose record of confirms is written to as it does itself.

A window with returned and refused messages, with and without ids, is in `test_full_outlets.py`; the
frames that tell of an alarm are in `test_blocked_broker.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from uuid import uuid4

import pytest
from aiormq.abc import FieldTable
from aiormq.exceptions import ChannelInvalidStateError

from shared.errors.connection import ConnectionLost
from shared.rabbitmq.connection import (
    HEARTBEAT_S,
    Broker,
    Channel,
    EntityNotFound,
    Properties,
    connect,
)
from shared.rabbitmq.publishing import (
    PUBLISH_WINDOW,
    Outgoing,
    Why,
    publish_at_once,
    publish_in_order,
)
from tests.chaos.links import Disorder, Link, open_wires
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

QUEUE = "kept"
FULL = "full"
TAKES_NOTHING: FieldTable = {"x-max-length": 0, "x-overflow": "reject-publish"}


@pytest.fixture
async def broker(deployment: Deployment) -> AsyncIterator[Broker]:
    async with connect(deployment.rabbitmq_url, name="test") as connected:
        channel = await connected.channel()
        await channel.queue_declare(QUEUE)
        await channel.queue_declare(FULL, arguments=TAKES_NOTHING)
        yield connected


@pytest.fixture
async def wired(deployment: Deployment) -> AsyncIterator[tuple[Link, Broker]]:
    """Give a connection with a channel, and the wire that it goes over."""
    with open_wires() as wires:
        link = wires.lay(deployment.rabbitmq_url)
        async with connect(link.url, name="test") as connected:
            await connected.channel()
            yield link, connected


@pytest.fixture
async def channel(broker: Broker) -> Channel:
    return await broker.channel(confirms=True, expendable=True)


def sent_to(queues: Iterable[str], exchange: str = "") -> list[Outgoing]:
    return [
        Outgoing(exchange, queue, b"%d" % number, Properties(message_id=str(uuid4())))
        for number, queue in enumerate(queues)
    ]


async def bodies(broker: Broker) -> list[bytes]:
    """Take all that the queue keeps."""
    channel = await broker.channel()
    taken: list[bytes] = []
    while (message := await channel.basic_get(QUEUE, no_ack=True)).delivery_tag:
        taken.append(message.body)
    return taken


async def test_of_a_window_that_is_over_nothing_is_kept(channel: Channel) -> None:
    for round_ in (1, 2):
        refused = await publish_in_order(channel, sent_to([QUEUE, FULL, "nowhere", QUEUE]))
        assert [one.why for one in refused] == [Why.REFUSED, Why.UNROUTABLE]
        assert channel.delivery_tag == 4 * round_
        assert channel.confirmations == {}
        assert channel.message_id_delivery_tag == {}


async def test_one_confirm_for_many_confirms_each(broker: Broker, channel: Channel) -> None:
    messages = sent_to([QUEUE] * (2 * PUBLISH_WINDOW + 1))
    assert await publish_in_order(channel, messages) == []
    assert await bodies(broker) == [one.body for one in messages]


async def test_a_window_and_what_aiormq_publishes_itself_count_the_same_tags(
    broker: Broker, channel: Channel
) -> None:
    for body in (b"first", b"second"):
        await channel.basic_publish(body, routing_key=QUEUE)
        assert await publish_in_order(channel, sent_to([QUEUE])) == []
    assert channel.delivery_tag == 4
    assert await bodies(broker) == [b"first", b"0", b"second", b"0"]


async def test_a_channel_that_closes_in_the_middle_of_a_window_ends_it_and_says_why(
    broker: Broker, channel: Channel
) -> None:
    before, after = sent_to([QUEUE] * 2), sent_to([QUEUE] * 2)
    with pytest.raises(EntityNotFound, match="no exchange 'missing'"):
        await publish_in_order(channel, [*before, *sent_to([QUEUE], "missing"), *after])
    assert channel.is_closed
    assert channel.message_id_delivery_tag == {}
    assert await bodies(broker) == [one.body for one in before]
    with pytest.raises(ChannelInvalidStateError):
        await publish_in_order(channel, after)
    assert not broker.is_lost()
    assert await publish_in_order(await broker.channel(confirms=True), after) == []


async def test_a_confirm_that_comes_too_late_is_taken_for_no_other_message(
    broker: Broker, channel: Channel
) -> None:
    late = sent_to([FULL, "nowhere", QUEUE])
    refused = await publish_in_order(channel, late, within=0)
    assert [one.why for one in refused] == [Why.UNANSWERED] * 3
    assert await publish_in_order(channel, sent_to([QUEUE] * 2)) == []
    assert await bodies(broker) == [b"2", b"0", b"1"]

    async def all_came() -> bool:
        return channel.confirmations == {}

    await eventually(all_came)


async def test_without_confirms_all_is_written_in_order_and_no_tag_is_counted(
    broker: Broker,
) -> None:
    channel = await broker.channel()
    messages = sent_to([QUEUE, FULL, "nowhere", *[QUEUE] * 9])
    await publish_at_once(channel, messages)

    async def all_there() -> bool:
        return (await channel.queue_declare(QUEUE, passive=True)).message_count == 10

    await eventually(all_there)
    assert channel.delivery_tag == 0
    assert await bodies(broker) == [one.body for one in messages if one.routing_key == QUEUE]


async def test_a_channel_on_a_connection_that_was_cut_is_a_lost_connection(
    wired: tuple[Link, Broker],
) -> None:
    link, broker = wired
    await asyncio.to_thread(link.cut)
    with pytest.raises(ConnectionLost):
        await broker.wait_lost()
    with pytest.raises(ConnectionLost):
        await broker.channel()


async def test_a_connection_that_was_never_blocked_ends_without_a_word(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="aiormq")
    async with connect(deployment.rabbitmq_url, name="test"):
        pass
    for _ in range(10):  # its end is told in turns of the loop that follow
        await asyncio.sleep(0)
    assert caplog.messages == []


async def test_a_broker_that_says_nothing_is_given_up_sooner_than_aiormq_does(
    wired: tuple[Link, Broker],
) -> None:
    link, broker = wired
    await asyncio.to_thread(link.disturb, Disorder("silence"))
    with pytest.raises(ConnectionLost):
        async with asyncio.timeout(3 * (HEARTBEAT_S + 1) - 1):  # it bears so much
            await broker.wait_lost()
