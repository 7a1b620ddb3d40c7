"""Brings what an older version declared up to date, and keeps what waits in it.

Questions waited in classic queues once, at a direct exchange. None of that can be declared anew
while it is there: what waits is moved aside, what is old deleted, all declared, and what was aside
goes to where it belongs now. It may be ended at any point and run again.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiormq
from pamqp.commands import Basic

from shared.errors import NotNow
from shared.messages import names
from shared.rabbitmq.connection import AmqpMessage, Broker, Properties, ResourceLocked
from shared.rabbitmq.publishing import PERSISTENT, Outgoing, publish
from shared.rabbitmq.topology import (
    EXCHANGES,
    QUERY_TTL_MS,
    Exchange,
    check_partitions,
    declare,
    declare_exchange,
    query_queue,
    queues,
)

FORMER_QUEUE: Final[dict[str, Any]] = {"x-queue-type": "classic", "x-message-ttl": QUERY_TTL_MS}
READERS: Final = {names.LOG: "command_service", names.QUERIES: "projection_service"}
"""Who reads the queues that were classic ones."""
WAY_BACK: Final = Exchange(
    names.MOVED_QUERIES, "direct", {"alternate-exchange": names.UNKNOWN_QUERIES}
)
KEPT: Final = (
    "content_type",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "message_type",
)
"""Of a question that is moved. Its headers are its sender's, and might steer copies elsewhere."""


async def upgrade(broker: Broker, partitions: int) -> int:
    """Declare everything as `declare` does, in place of what an older version declared.

    Raises NotNow, and changes nothing, while workers read a queue that must go.
    """
    await check_partitions(broker, partitions)
    async with _alone(broker):
        former = [name for name in READERS if await _is_classic(broker, name)]
        if former or await _is_direct(broker):
            for name in former:
                await _refuse_while_read(broker, name)
            await _move_aside(broker, former)
        declared = await declare(broker, partitions)
        if await broker.has_queue(names.MOVED_QUERIES):
            await _bring_back(broker, partitions)
    return declared


@asynccontextmanager
async def _alone(broker: Broker) -> AsyncIterator[None]:
    """Keep others from doing the same; a queue that is ours alone ends with this connection."""
    channel = await broker.channel(expendable=True)
    try:
        await channel.queue_declare(names.TOPOLOGY_LOCK, exclusive=True)
    except ResourceLocked:
        raise NotNow("the topology is being declared by somebody else: try again") from None
    yield
    await channel.queue_delete(names.TOPOLOGY_LOCK)


async def _is_classic(broker: Broker, queue: str) -> bool:
    if not await broker.has_queue(queue):
        return False
    channel = await broker.channel(expendable=True)
    try:
        await channel.queue_declare(queue, durable=True, arguments=FORMER_QUEUE)
    except aiormq.exceptions.ChannelPreconditionFailed:
        return False
    await broker.close_channel(channel)
    return True


async def _is_direct(broker: Broker) -> bool:
    """Whether questions are published to an exchange of the former type."""
    channel = await broker.channel(expendable=True)
    try:
        await channel.exchange_declare(names.QUERIES, passive=True)
        await declare_exchange(channel, _exchange(names.QUERIES))
    except aiormq.exceptions.ChannelNotFoundEntity:
        return False
    except aiormq.exceptions.ChannelPreconditionFailed:
        return True
    await broker.close_channel(channel)
    return False


def _exchange(name: str) -> Exchange:
    return next(exchange for exchange in EXCHANGES if exchange.name == name)


async def _refuse_while_read(broker: Broker, queue: str) -> None:
    channel = await broker.channel()
    found = await channel.queue_declare(queue, passive=True)
    await broker.close_channel(channel)
    if found.consumer_count:
        raise _still_read(queue)


def _still_read(queue: str) -> NotNow:
    return NotNow(
        f"{queue} is a classic queue, which must make way for a quorum queue, and workers of an "
        f"older version read it: stop those of {READERS[queue]}, run this again, and start the "
        "new ones; what is sent meanwhile waits"
    )


async def _move_aside(broker: Broker, former: list[str]) -> None:
    """Have all questions wait in one queue, and delete what is old.

    What finds no other way goes there, so first that way is opened, then every other one closed.
    """
    channel = await broker.channel()
    await declare_exchange(channel, _exchange(names.UNKNOWN_QUERIES))
    await channel.queue_declare(names.MOVED_QUERIES, durable=True, arguments=query_queue())
    await channel.queue_bind(names.MOVED_QUERIES, names.UNKNOWN_QUERIES)
    if await broker.has_queue(names.QUERIES):
        await channel.queue_unbind(names.QUERIES, names.UNKNOWN_QUERIES)
    await channel.exchange_delete(names.QUERIES)
    await declare_exchange(channel, _exchange(names.QUERIES))
    for queue in former:
        await _move(broker, queue, names.UNKNOWN_QUERIES)
        await _delete(broker, queue)


async def _bring_back(broker: Broker, partitions: int) -> None:
    """Send what waits aside to where it belongs now.

    By an exchange for that alone, since whoever declares the topology may not ask questions.
    """
    channel = await broker.channel()
    await channel.queue_unbind(names.MOVED_QUERIES, names.UNKNOWN_QUERIES)
    await declare_exchange(channel, WAY_BACK)
    for queue in queues(partitions):
        for exchange, key in queue.bindings:
            if exchange == names.QUERIES:
                await channel.queue_bind(queue.name, WAY_BACK.name, routing_key=key)
    await _move(broker, names.MOVED_QUERIES, WAY_BACK.name)
    await channel.exchange_delete(WAY_BACK.name)
    await channel.queue_delete(names.MOVED_QUERIES)


async def _move(broker: Broker, queue: str, exchange: str) -> None:
    """Publish what waits in a queue, each under its own routing key, until nothing is left.

    A message is taken off its queue once the broker has its copy: it may come twice, and a
    question may.
    """
    channel = await broker.channel(confirms=True)
    while isinstance((found := await channel.basic_get(queue)).delivery, Basic.GetOk):
        await publish(channel, _copy(found, exchange), mandatory=True)
        await channel.basic_ack(found.delivery_tag or 0)
    await broker.close_channel(channel)


def _copy(found: AmqpMessage, exchange: str) -> Outgoing:
    kept = {name: getattr(found.header.properties, name) for name in KEPT}
    properties = Properties(**kept, delivery_mode=PERSISTENT)
    return Outgoing(exchange, found.routing_key or "", found.body, properties)


async def _delete(broker: Broker, queue: str) -> None:
    channel = await broker.channel(expendable=True)
    try:
        await channel.queue_delete(queue, if_unused=True, if_empty=True)
    except aiormq.exceptions.ChannelPreconditionFailed:
        raise _still_read(queue) from None
    await broker.close_channel(channel)
