"""A client that costs little: requests and answers over aio-pika's underlay."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from shared.messages import names
from shared.rabbitmq.connection import AmqpMessage, Broker, Channel, Properties, connect
from shared.rabbitmq.publishing import Outgoing, publish
from tests.bench.grants import Grant

Answer = dict[str, Any]


class Asker:
    """Sends commands and queries, and hands out their answers."""

    def __init__(self, channel: Channel, replies: str, partitions: int) -> None:
        self._channel = channel
        self._replies = replies
        self._partitions = partitions
        self._waiting: dict[str, asyncio.Future[Answer]] = {}

    async def command(self, grant: Grant) -> Answer:
        """Send a grant; return its reply. The publish is confirmed by the reply alone."""
        message = grant.outgoing(self._replies, self._partitions)
        return await self._ask(grant.command_id, message)

    async def query(self, type_: str, **body: object) -> Answer:
        """Ask a query; return its answer."""
        correlation_id = str(uuid4())
        properties = Properties(
            content_type="application/json",
            correlation_id=correlation_id,
            message_type=type_,
            reply_to=self._replies,
        )
        message = Outgoing(names.QUERIES, type_, json.dumps(body).encode(), properties)
        return await self._ask(correlation_id, message)

    async def _ask(self, correlation_id: str, message: Outgoing) -> Answer:
        answered = self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        await publish(self._channel, message)
        answer: Answer = await answered
        return answer

    def receive(self, delivery: AmqpMessage) -> None:
        """Hand an answer to who waits for it."""
        waiting = self._waiting.pop(delivery.header.properties.correlation_id or "", None)
        if waiting is not None and not waiting.done():
            waiting.set_result(json.loads(delivery.body))


@asynccontextmanager
async def open_asker(url: str, partitions: int) -> AsyncIterator[Asker]:
    """Connect, with an exclusive queue for answers."""
    async with connect(url, name="benchmark client") as broker:
        yield await _asker(broker, partitions)


async def _asker(broker: Broker, partitions: int) -> Asker:
    channel = await broker.channel()
    queue = (await channel.queue_declare(exclusive=True)).queue or ""
    asker = Asker(channel, queue, partitions)

    async def receive(delivery: AmqpMessage) -> None:
        asker.receive(delivery)

    await channel.basic_consume(queue, receive, no_ack=True)
    return asker
