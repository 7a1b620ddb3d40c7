"""A black-box client: it knows the contract and plain aio-pika, and nothing of our code."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4
from zlib import crc32

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

Json = dict[str, Any]

VERBS = {
    "AskConsent": "ask",
    "GrantConsent": "grant",
    "RevokeConsent": "revoke",
    "DenyConsent": "deny",
    "WithdrawRequest": "withdraw",
}
MOST_ASKED = 4
PREFIXES = {
    "AskConsent": "by",
    "GrantConsent": "to",
    "RevokeConsent": "from",
    "DenyConsent": "to",
    "WithdrawRequest": "by",
}


def body_of(
    type_: str,
    patient_id: str,
    target: str = "exams",
    entity: str = "doctor",
    id_: str = "d-1",
    expires_at: str | None = None,
) -> Json:
    """Write the body of a command."""
    prefix = PREFIXES[type_]
    body = {
        "patient_id": patient_id,
        f"{prefix}_entity": entity,
        f"{prefix}_id": id_,
        "target": target,
    }
    return body if expires_at is None else {**body, "expires_at": expires_at}


@dataclass
class Client:
    """Sends commands and queries, and waits for replies."""

    channel: AbstractChannel
    replies: AbstractQueue
    partitions: int
    waiting: dict[str, "asyncio.Queue[AbstractIncomingMessage]"] = field(default_factory=dict)

    def key(self, type_: str, patient_id: str) -> str:
        """Compute a command's routing key, as the contract says."""
        return f"{VERBS[type_]}.{crc32(patient_id.encode()) % self.partitions}"

    async def send(
        self,
        type_: str | None,
        body: Json | bytes,
        *,
        exchange: str = "consent.commands",
        key: str | None = None,
        **properties: Any,  # noqa: ANN401 - any property of a message
    ) -> str:
        """Publish with a confirm, asking for a reply; return the correlation id."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        if key is None and isinstance(body, dict) and type_ in VERBS:
            key = self.key(type_, body["patient_id"])
        correlation_id = properties.pop("correlation_id", None) or str(uuid4())
        self.waiting[correlation_id] = asyncio.Queue()
        settings: dict[str, Any] = {
            "type": type_,
            "message_id": str(uuid4()),
            "content_type": "application/json",
            "reply_to": self.replies.name,
            "correlation_id": correlation_id,
        }
        message = aio_pika.Message(raw, **(settings | properties))
        destination = (
            self.channel.default_exchange
            if exchange == ""
            else await self.channel.get_exchange(exchange, ensure=False)
        )
        await destination.publish(message, routing_key=key or "", mandatory=False)
        return correlation_id

    async def message(self, correlation_id: str, within: float = 30) -> AbstractIncomingMessage:
        """Wait for a reply, as it came."""
        async with asyncio.timeout(within):
            return await self.waiting[correlation_id].get()

    async def reply(self, correlation_id: str, within: float = 30) -> Json:
        """Wait for a reply and read it."""
        message = await self.message(correlation_id, within)
        answer: Json = json.loads(message.body)
        answer["_type"] = message.type
        return answer

    async def command(self, type_: str, patient_id: str, **more: Any) -> Json:  # noqa: ANN401
        """Send a well-formed command and wait for its outcome."""
        named = ("target", "entity", "id_", "expires_at")
        fields = {name: more.pop(name) for name in named if name in more}
        body = body_of(type_, patient_id, **fields)
        return await self.reply(await self.send(type_, body, **more))

    async def query(self, type_: str, **body: Any) -> Json:  # noqa: ANN401
        """Ask a query and wait for its answer, however long a slow machine needs to project."""
        for _ in range(MOST_ASKED):
            answer = await self.query_once(type_, **body)
            if answer.get("error") != "not_yet_projected":
                break
        return answer

    async def query_once(self, type_: str, **body: Any) -> Json:  # noqa: ANN401
        """Ask a query and wait for its answer, which may be that it is too early."""
        return await self.reply(await self.send(type_, body, exchange="consent.queries", key=type_))

    async def subscribe(
        self, pattern: str, on_event: Callable[[AbstractIncomingMessage], None]
    ) -> AbstractQueue:
        """Bind a queue of one's own to the events."""
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind("consent.events", pattern)

        async def receive(message: AbstractIncomingMessage) -> None:
            on_event(message)
            await message.ack()

        await queue.consume(receive)
        return queue

    async def length(self, queue: str) -> int:
        """Count the messages that wait in a queue, by declaring it passively."""
        found = await self.channel.declare_queue(queue, passive=True)
        return found.declaration_result.message_count or 0

    async def dead_letters(self) -> list[AbstractIncomingMessage]:
        """Take everything out of the dead letters."""
        return await self.take_all("consent.dead-letters")

    async def take_all(self, name: str) -> list[AbstractIncomingMessage]:
        """Take everything out of a queue."""
        queue = await self.channel.get_queue(name, ensure=False)
        found = []
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            found.append(message)
        return found


@asynccontextmanager
async def open_client(url: str, partitions: int) -> AsyncIterator[Client]:
    """Connect with plain aio-pika."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        replies = await channel.declare_queue(exclusive=True)
        client = Client(channel, replies, partitions)

        async def receive(message: AbstractIncomingMessage) -> None:
            if message.correlation_id in client.waiting:
                client.waiting[message.correlation_id].put_nowait(message)

        await replies.consume(receive, no_ack=True)
        yield client
