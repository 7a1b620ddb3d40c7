"""Declares the exchanges, queues and bindings; the only code that needs configure permission."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import aiormq

from shared.errors import SchemaError, SettingsError
from shared.messages import names
from shared.rabbitmq.connection import Broker, Channel

DELIVERY_LIMIT: Final = 100_000
"""How often a message may come back before the broker sets it aside in the dead letters.

A queue without a limit puts what comes back at its end. The limit counts whatever made a worker
let go, a database's bad hour as well, so no such hour may reach it; a message that ends workers is
found out by them, long before.
"""
NO_LIMIT: Final = 1_000_000
"""For the dead letters, where people look at a message and put it back."""
MOST_DEAD_LETTERS: Final = 8_000
LARGEST_DEAD_LETTERS: Final = 1024**3
"""Bytes. Beyond either bound the oldest goes, long after an alert: what else a sender could fill
the broker's disk with would stop everybody. That it is the oldest is the broker's own default, so
that a policy may have the newest wait instead (`overflow: reject-publish`)."""
QUERY_TTL_MS: Final = 30_000
SPREAD: Final = {"x-queue-leader-locator": "balanced"}
"""Of a cluster's nodes, the one with the fewest leaders gets the next; else all get to the node
where the topology is declared. It counts at the birth of a queue alone, so one that was declared
without it stays as it is (`rabbitmq-queues rebalance quorum` spreads those)."""


@dataclass(frozen=True)
class Exchange:
    """An exchange to declare."""

    name: str
    type: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Queue:
    """A queue to declare, with its bindings as (exchange, routing key)."""

    name: str
    arguments: dict[str, Any]
    bindings: tuple[tuple[str, str], ...] = ()
    former: tuple[tuple[str, str], ...] = ()
    """Bindings of an older version, which go once those of today stand."""

    @property
    def accepted(self) -> tuple[dict[str, Any], ...]:
        """The arguments that it may have: where its leader was born does not matter any more."""
        born_elsewhere = {
            name: value for name, value in self.arguments.items() if name not in SPREAD
        }
        return self.arguments, born_elsewhere


EXCHANGES: Final = (
    Exchange(names.UNROUTABLE, "fanout"),
    Exchange(names.COMMANDS, "topic", {"alternate-exchange": names.UNROUTABLE}),
    Exchange(names.EVENTS, "topic"),
    Exchange(names.UNKNOWN_QUERIES, "fanout"),
    Exchange(names.QUERIES, "topic", {"alternate-exchange": names.UNKNOWN_QUERIES}),
)


def _work_queue(**more: object) -> dict[str, Any]:
    """Arguments of a queue that loses nothing: what comes back too often is set aside.

    At-least-once dead-lettering degrades silently unless publishing is refused on overflow.
    """
    return {
        "x-queue-type": "quorum",
        **SPREAD,
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": names.DEAD_LETTERS,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        **more,
    }


def _ordered_queue() -> dict[str, Any]:
    return _work_queue(**{"x-single-active-consumer": True})


def _dead_letters() -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        **SPREAD,
        "x-delivery-limit": NO_LIMIT,
        "x-max-length": MOST_DEAD_LETTERS,
        "x-max-length-bytes": LARGEST_DEAD_LETTERS,
    }


def query_queue() -> dict[str, Any]:
    """Arguments of a queue of questions: who asked does not wait for longer than they do.

    Questions are worth little; but a classic queue lives on one node, and nobody can use it or
    declare it elsewhere while that is down.
    """
    return {
        "x-queue-type": "quorum",
        **SPREAD,
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-message-ttl": QUERY_TTL_MS,
    }


def _witness() -> dict[str, Any]:
    """One message, in place of which the next one comes; it is read and put back."""
    return {"x-queue-type": "quorum", **SPREAD, "x-delivery-limit": NO_LIMIT, "x-max-length": 1}


def queues(partitions: int) -> Iterator[Queue]:
    """Every queue of a deployment with that many partitions."""
    yield Queue(names.DEAD_LETTERS, _dead_letters())
    yield Queue(names.UNROUTABLE, _work_queue(), ((names.UNROUTABLE, ""),))
    yield Queue(names.LOG, query_queue(), ((names.QUERIES, names.READ_EVENTS),))
    yield Queue(
        names.CHECKS,
        query_queue(),
        ((names.QUERIES, names.HAS_CONSENT), (names.QUERIES, names.CHECK_CONSENTS)),
    )
    yield Queue(
        names.QUERIES,
        query_queue(),
        (
            (names.QUERIES, names.LIST_CONSENTS),
            (names.QUERIES, names.LIST_PATIENTS),
            (names.QUERIES, names.CONSENT_HISTORY),
            (names.UNKNOWN_QUERIES, ""),
        ),
    )
    for number in range(partitions):
        # The broker finds the way of an event in three quarters of the time that a # takes it.
        yield Queue(
            names.projection_queue(number),
            _ordered_queue(),
            ((names.EVENTS, f"*.*.*.{number}"),),
            former=((names.EVENTS, f"#.{number}"),),
        )
        yield Queue(
            names.command_queue(number), _ordered_queue(), ((names.COMMANDS, f"*.{number}"),)
        )
        yield Queue(names.witness_queue(number), _witness())


DELETE_IT: Final = (
    "a queue keeps the arguments that it was declared with: take out what it holds, delete it and "
    "run this again, or use another virtual host"
)


async def is_declared_beyond(broker: Broker, partitions: int) -> bool:
    """Whether the topology was declared for more partitions: nobody would read their queues."""
    channel = await broker.channel()
    try:
        await channel.queue_declare(names.command_queue(partitions), passive=True)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return False
    return True


def beyond(partitions: int) -> str:
    """Say what to do about it."""
    queues = f"{names.command_queue(partitions)} and {names.projection_queue(partitions)}"
    return (
        f"there are queues for more than {partitions} partitions: set CONSENT_PARTITIONS to the "
        f"number of this deployment, or delete {queues} (and above) if they were a mistake"
    )


async def check_partitions(broker: Broker, partitions: int) -> None:
    """Raise SettingsError where the topology was declared for more partitions."""
    if await is_declared_beyond(broker, partitions):
        raise SettingsError(beyond(partitions))


async def declare(broker: Broker, partitions: int) -> int:
    """Declare everything, in an order that loses nothing; return how many things there are.

    Doing it again changes nothing. Raises SchemaError where something of that name
    exists with other arguments, SettingsError where there are more partitions already.
    """
    await check_partitions(broker, partitions)
    channel = await broker.channel(expendable=True)
    try:
        for exchange in EXCHANGES:
            await declare_exchange(channel, exchange)
        bindings = [await _declare_queue(broker, queue) for queue in queues(partitions)]
    except aiormq.exceptions.ChannelPreconditionFailed as error:
        raise SchemaError(f"{error}: {DELETE_IT}") from None
    return len(EXCHANGES) + len(bindings) + sum(bindings)


async def declare_exchange(channel: Channel, exchange: Exchange) -> None:
    """Declare an exchange."""
    await channel.exchange_declare(
        exchange.name, exchange_type=exchange.type, durable=True, arguments=exchange.arguments
    )


async def _declare_queue(broker: Broker, queue: Queue) -> int:
    complaints = []
    for arguments in queue.accepted:
        channel = await broker.channel(expendable=True)
        try:
            await channel.queue_declare(queue.name, durable=True, arguments=arguments)
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            complaints.append(error)
            continue
        for exchange, key in queue.bindings:
            await channel.queue_bind(queue.name, exchange, routing_key=key)
        for exchange, key in queue.former:
            await channel.queue_unbind(queue.name, exchange, routing_key=key)
        await broker.close_channel(channel)
        return len(queue.bindings)
    raise complaints[0]
