"""The queue of a subscription: its reader declares and binds it, and alone reads it."""

import asyncio
import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

import structlog
from yarl import URL

from shared.errors import SchemaError, SettingsError
from shared.messages import names
from shared.rabbitmq.connection import (
    Broker,
    Channel,
    PreconditionFailed,
    ResourceLocked,
)
from shared.rabbitmq.topology import NO_LIMIT
from shared.values.several_hosts import one_by_one

ARGUMENTS: Final[dict[str, Any]] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": NO_LIMIT,  # with a limit, what comes back keeps its place in the queue
    "x-single-active-consumer": True,
}
STANDBY_S: Final = 1.0
LONGEST_NAME: Final = 200
"""Some bytes below what AMQP allows, for the names of the queues beside it."""
_NAME: Final = re.compile(rf"[A-Za-z0-9._:@ -]{{1,{LONGEST_NAME}}}")

log = structlog.get_logger()


def check_name(queue: str) -> str:
    """Return the name; raises SettingsError where no queue can have it."""
    if not _NAME.fullmatch(queue):
        raise SettingsError(
            f"the queue's name must be 1 to {LONGEST_NAME} letters, digits or . - _ : @, "
            "and begin with the name of the broker's user"
        )
    return queue


def passing_name(url: str, purpose: str) -> str:
    """Name a queue for one connection, as a subscriber may: it bears the name of the URL's user."""
    user = URL(one_by_one(url)[0]).user or "guest"
    return f"{user}.{purpose}.{secrets.token_hex(4)}"


async def become_reader(broker: Broker, queue: str) -> None:
    """Return once no other connection reads the queue; until this one is closed, none will.

    An exclusive queue beside it is the lock: it goes with the connection that declared it.
    """
    waits = False
    while not await _is_reader(broker, queue):
        if not waits:
            log.info("subscription.waiting", queue=queue, reason="another process reads it")
        waits = True
        await asyncio.sleep(STANDBY_S)


async def _is_reader(broker: Broker, queue: str) -> bool:
    channel = await broker.channel(expendable=True)
    try:
        await channel.queue_declare(f"{queue}.reader", exclusive=True)
    except ResourceLocked:
        return False
    await channel.close()
    return True


async def declare_durable(broker: Broker, queue: str, patterns: Sequence[str]) -> bool:
    """Declare and bind the queue; return whether it was there before.

    Raises SchemaError where a queue of that name is of another kind.
    """
    was_there = await broker.has_queue(queue)
    channel = await broker.channel(expendable=True)
    try:
        await channel.queue_declare(queue, durable=True, arguments=ARGUMENTS)
    except PreconditionFailed:
        raise SchemaError(
            f"the queue {queue} is there with other arguments: delete it, or take another name"
        ) from None
    await _bind(channel, queue, patterns)
    return was_there


async def declare_passing(broker: Broker, queue: str, patterns: Sequence[str]) -> None:
    """Declare and bind a queue that goes with the connection."""
    channel = await broker.channel(expendable=True)
    await channel.queue_declare(queue, exclusive=True)
    await _bind(channel, queue, patterns)


async def _bind(channel: Channel, queue: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        await channel.queue_bind(queue, names.EVENTS, routing_key=pattern)
    await channel.close()
