"""Receives replies as they come, and at the end everything that an independent subscriber got."""

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from tests.chaos.evidence import Received, Reply
from tests.chaos.senders import REPLIES

EVENTS = "chaos.events"
AGAIN_AFTER_S = 0.3
ANSWERS_WITHIN_S = 10.0
ASKS_EVERY_S = 1.0
QUIET_S = 5.0
"""So long after all that were counted, no more are expected."""
STALLED_S = 60.0


async def declare_queues(url: str) -> None:
    """Declare both queues; they outlive a restart of the broker."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(REPLIES, durable=True, arguments={"x-queue-type": "quorum"})
        events = await channel.declare_queue(
            EVENTS, durable=True, arguments={"x-queue-type": "quorum"}
        )
        await events.bind("consent.events", "#")


class ReplyListener:
    """Collects replies; it connects again whenever the broker was away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.replies: list[Reply] = []
        self.answered: set[str] = set()

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            listening = asyncio.ensure_future(self._listen())
            try:
                await asyncio.wait([listening])
            finally:
                listening.cancel()
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _listen(self) -> None:
        connection = await aio_pika.connect(f"{self._url}?heartbeat=5", timeout=ANSWERS_WITHIN_S)
        try:
            channel = await connection.channel()
            queue = await channel.get_queue(REPLIES, ensure=False)
            await queue.consume(self.receive, no_ack=True)
            while True:  # a question now and then, since a lost connection does not always say so
                await asyncio.sleep(ASKS_EVERY_S)
                asking = channel.declare_queue(REPLIES, passive=True)
                async with asyncio.timeout(ANSWERS_WITHIN_S):
                    await asking
        finally:
            with suppress(Exception):
                async with asyncio.timeout(2):
                    await connection.close()

    async def receive(self, message: AbstractIncomingMessage) -> None:
        """Note a reply, wherever it arrived."""
        content = json.loads(message.body)
        id_ = message.correlation_id or ""
        self.answered.add(id_)
        self.replies.append(Reply(id_, datetime.now(UTC), content))


async def read_events(url: str) -> list[Received]:
    """Read the subscriber's queue from its beginning to its end."""
    received: list[Received] = []
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1000)
        queue = await channel.declare_queue(EVENTS, passive=True)
        waiting = queue.declaration_result.message_count or 0
        arriving: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(arriving.put)
        with suppress(TimeoutError):
            while True:
                within = QUIET_S if len(received) >= waiting else STALLED_S
                async with asyncio.timeout(within):
                    message = await arriving.get()
                received.append(_received(message))
                if len(received) % 500 == 0:
                    await message.channel.basic_ack(message.delivery_tag or 0, multiple=True)
    return received


async def read_dead_letters(url: str) -> list[str | None]:
    """Return the ids of all messages that were set aside; they stay there."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("consent.dead-letters", ensure=False)
        ids = []
        while (message := await queue.get(fail=False, timeout=ANSWERS_WITHIN_S)) is not None:
            ids.append(message.message_id)
        return ids


def _received(message: AbstractIncomingMessage) -> Received:
    return Received(message.routing_key or "", message.message_id, json.loads(message.body))
