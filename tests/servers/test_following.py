"""Following the log: one partition never waits for another one, and each comes and goes alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Final

import pytest

import shared.client.subscription
from shared.client.subscription import Start
from shared.client.subscription_queue import declare_durable
from shared.event_log.follower import Follower
from shared.event_log.log_client import LogClient, Page
from shared.event_log.position_tracker import Arrival, PositionTracker
from shared.event_log.set_back import SetBack
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import MOST_EVENTS
from shared.messages.replies import Detail
from shared.rabbitmq.connection import Broker, Properties, connect
from shared.rabbitmq.consumer import SUSPICIOUS, Consumer, Delivery
from shared.rabbitmq.publishing import Outgoing, publish_in_order
from shared.rabbitmq.rpc_client import Requests
from tests.conftest import PARTITIONS
from tests.servers.test_parked import event_of
from tests.servers.test_subscription import Seen, subscribed
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

QUEUE: Final = "followed"


@pytest.fixture
async def broker(deployment: Deployment) -> AsyncIterator[Broker]:
    async with connect(deployment.rabbitmq_url, name="test") as connected:
        channel = await connected.channel()
        arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 1000}
        await channel.queue_declare(QUEUE, durable=True, arguments=arguments)
        yield connected


async def put(broker: Broker, *bodies: bytes, **headers: int) -> None:
    """Put messages into the queue."""
    channel = await broker.channel(confirms=True)
    properties = [Properties(message_id=str(n), headers=dict(headers)) for n in range(len(bodies))]
    pairs = zip(bodies, properties, strict=True)
    await publish_in_order(channel, [Outgoing("", QUEUE, body, one) for body, one in pairs])


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    """Take so many, one batch after the other."""
    taken: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(taken) < count:
            taken += await consumer.take(100)
    return taken


# Deliveries


async def test_what_is_held_is_not_acknowledged_with_what_came_after_it(broker: Broker) -> None:
    await put(broker, b"1", b"2", b"3", b"4")
    consumer = Consumer(broker, prefetch=4)
    await consumer.open(QUEUE)
    first, held, third, fourth = await take(consumer, 4)
    await consumer.settle([first, third, fourth])
    await consumer.acknowledge()
    await consumer.close(QUEUE)

    await consumer.open(QUEUE)
    again = await take(consumer, 3)
    assert [item.message.body for item in again] == [b"2", b"3", b"4"]
    await consumer.settle(again)
    await consumer.acknowledge()
    await consumer.close(QUEUE)
    channel = await broker.channel()
    left = await channel.queue_declare(QUEUE, passive=True)
    assert left.message_count == 0
    assert held.message.body == b"2"


async def test_what_was_let_go_comes_back_although_what_came_after_it_is_settled(
    broker: Broker,
) -> None:
    await put(broker, b"1", b"2", b"3")
    consumer = Consumer(broker, prefetch=10)
    await consumer.open(QUEUE)
    first, second, third = await take(consumer, 3)
    consumer.let_go([second])
    await consumer.settle([first, third])
    await consumer.drained(QUEUE)
    await consumer.close(QUEUE)
    await consumer.open(QUEUE)
    assert [item.message.body for item in await take(consumer, 2)] == [b"2", b"3"]


async def test_how_often_a_message_came_back_is_not_believed_of_its_first_delivery(
    broker: Broker,
) -> None:
    await put(broker, *(b"%d" % n for n in range(10)), **{"x-delivery-count": 99})
    consumer = Consumer(broker, prefetch=10)
    source = await consumer.open(QUEUE)

    async def all_in_hand() -> bool:
        return source.in_hand == 10

    await eventually(all_in_hand)
    items = await consumer.take(100)
    assert [item.delivery_count for item in items] == [0] * 10


async def test_how_often_a_message_came_back_is_what_the_broker_counted(broker: Broker) -> None:
    await put(broker, b"1", **{"x-delivery-count": 99})
    consumer = Consumer(broker, prefetch=10)
    for returns in range(SUSPICIOUS + 1):
        await consumer.open(QUEUE)
        (item,) = await take(consumer, 1)
        assert item.delivery_count == returns
        await consumer.close(QUEUE)


@pytest.mark.parametrize("within", [None, 10.0])
async def test_a_taker_that_is_cancelled_as_it_is_woken_ends(
    broker: Broker, within: float | None
) -> None:
    consumer = Consumer(broker, prefetch=10)

    async def take_on() -> None:
        while True:
            await consumer.take(10, within)

    task = asyncio.create_task(take_on())
    await asyncio.sleep(0.05)
    consumer.wake()
    await asyncio.sleep(0)  # the waiting within is over, but the taker does not know it yet
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done


# Partitions


class Log(LogClient):
    """The log of two partitions: of 0 it has many pages, of 1 a few events."""

    def __init__(self, requests: Requests, pages: int) -> None:
        super().__init__(requests)
        object.__setattr__(self, "heads", {0: pages, 1: 5})

    heads: dict[int, int]

    async def read(self, partition: int, after_position: int, limit: int = MOST_EVENTS) -> Page:
        """Give one event a page."""
        head = self.heads[partition]
        events = [one(partition, after_position + 1)] if after_position < head else []
        return Page(events=events, head=head)


def one(partition: int, position: int) -> CloudEvent:
    event = event_of(partition, position, position) | {"id": f"{partition}/{position}"}
    return CloudEvent.model_validate(event)


class Applied:
    """Notes what it is given; takes its time, and fails when a partition left meanwhile."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []
        self.following: set[int] = set()
        self.begun = asyncio.Event()
        self.at_work: list[set[int]] = []
        """The partitions of each call that has not returned."""
        self.most_at_work = 0

    async def apply(self, events: Sequence[CloudEvent]) -> None:
        """Take a while."""
        self.begun.set()
        partitions = {event.partition for event in events}
        assert all(partitions.isdisjoint(others) for others in self.at_work)
        self.at_work.append(partitions)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        await asyncio.sleep(0.01)
        assert partitions <= self.following
        self.at_work.remove(partitions)
        self.places += [(event.partition, event.position) for event in events]

    async def set_aside(self, item: Delivery, details: Sequence[Detail]) -> None:
        """Expect none of it."""
        raise AssertionError(details)

    async def on_compared(self, partition: int, found: SetBack | None) -> None:
        """Expect the log to have everything."""
        assert found is None

    def on_batch(
        self, deliveries: int, events: int, partitions: Sequence[int], seconds: float
    ) -> None:
        """Measure nothing."""

    def on_log_page(self, events: int) -> None:
        """Measure nothing."""


async def follow(
    broker: Broker, applied: Applied, pages: int, *, side_by_side: bool = False
) -> tuple[Follower, "asyncio.Task[None]"]:
    """Follow both partitions from their beginnings."""
    consumer = Consumer(broker, prefetch=100)
    log = Log(await Requests.open(broker), pages)
    follower = Follower(consumer, log, applied, most=10, side_by_side=side_by_side)
    for partition in (0, 1):
        applied.following.add(partition)
        follower.open(partition, PositionTracker(0))
    await consumer.open(QUEUE)

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(follower.run())
            group.create_task(follower.keep_up())

    return follower, asyncio.create_task(both())


async def ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_gap_is_filled_while_another_partition_reads_a_long_history(
    broker: Broker,
) -> None:
    applied = Applied()
    follower, task = await follow(broker, applied, pages=10**9)
    try:
        async with asyncio.timeout(30):
            await applied.begun.wait()
        await eventually(lambda: reached(follower, 1, 5))
        await put(broker, one(1, 8).to_json())
        log = follower._log  # noqa: SLF001 - the log grows
        assert isinstance(log, Log)
        log.heads[1] = 8
        await eventually(lambda: reached(follower, 1, 8))
        assert follower.position(0) > 0
        assert not task.done()
    finally:
        await ended(task)


async def reached(follower: Follower, partition: int, position: int) -> bool:
    return follower.position(partition) >= position


@pytest.mark.parametrize("side_by_side", [False, True])
async def test_a_handler_is_called_alone_unless_it_takes_partitions_side_by_side(
    broker: Broker, *, side_by_side: bool
) -> None:
    applied = Applied()
    follower, task = await follow(broker, applied, pages=10, side_by_side=side_by_side)
    try:
        await eventually(lambda: reached(follower, 0, 10))
        await eventually(lambda: reached(follower, 1, 5))
        await put(broker, one(0, 11).to_json(), one(1, 6).to_json(), one(0, 12).to_json())
        await eventually(lambda: reached(follower, 0, 12))
    finally:
        await ended(task)
    assert applied.most_at_work == (2 if side_by_side else 1)
    for partition in (0, 1):
        taken = [position for number, position in applied.places if number == partition]
        assert taken == sorted(set(taken))


@pytest.mark.parametrize("side_by_side", [False, True])
async def test_a_partition_is_handed_over_in_the_midst_of_its_history(
    broker: Broker, *, side_by_side: bool
) -> None:
    applied = Applied()
    follower, task = await follow(broker, applied, pages=10**9, side_by_side=side_by_side)
    try:
        async with asyncio.timeout(30):
            await applied.begun.wait()
        follower.let_go(0)
        await follower.close(0)
        applied.following.discard(0)
        await eventually(lambda: reached(follower, 1, 5))
        await asyncio.sleep(0.1)  # whatever was on its way for the other one
        assert not task.done()
    finally:
        await ended(task)
    assert applied.places.count((1, 5)) == 1


# Where a subscriber begins


def test_a_track_may_begin_before_the_end_of_the_log_with_what_arrives_first() -> None:
    track: PositionTracker[str] = PositionTracker(10, at_latest=True)
    assert [track.place(position) for position in (9, 10, 11, 8)] == [
        Arrival.NEXT,
        Arrival.NEXT,
        Arrival.NEXT,
        Arrival.SEEN,
    ]


def test_a_track_begins_at_the_end_of_the_log_where_what_arrives_is_newer() -> None:
    track: PositionTracker[str] = PositionTracker(10, at_latest=True)
    assert [track.place(position) for position in (12, 9, 11)] == [
        Arrival.GAP,
        Arrival.SEEN,
        Arrival.NEXT,
    ]


@pytest.mark.parametrize("patterns", [["#"], ["asked.#"]])
async def test_from_now_on_begins_when_the_queue_is_bound(
    deployment: Deployment,
    client: Client,
    patterns: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployment.start("command_service").wait_ready()
    for number in range(5):
        await client.command("AskConsent", f"p-before-{number}")
    meanwhile: list[str] = []

    async def declare_and_publish(
        broker: Broker, queue: str, chosen: Sequence[str]
    ) -> bool:  # as events go on in a busy deployment
        was_there = await declare_durable(broker, queue, chosen)
        for number in range(2 * PARTITIONS):
            outcome = await client.command("AskConsent", f"p-meanwhile-{number}")
            meanwhile.append(outcome["events"][0]["id"])
        return was_there

    monkeypatch.setattr(shared.client.subscription, "declare_durable", declare_and_publish)
    seen = Seen()
    options = {"start": Start.NOW, "patterns": patterns}
    async with subscribed(deployment, "now", seen.handle, **options):

        async def all_handed_over() -> bool:
            return bool(meanwhile) and set(meanwhile) <= {event.id for event in seen.events}

        await eventually(all_handed_over)
    assert not [event for event in seen.events if event.subject.startswith("p-before")]
