"""Asks of a client that keeps so many questions in flight, each sent when another is answered."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from time import monotonic

import uvloop

from shared.messages import names
from shared.rabbitmq.connection import AmqpMessage, Broker, Channel, Properties, connect
from shared.rabbitmq.publishing import Outgoing, publish_at_once
from tests.bench.bench import UnmetError

WITHIN_S = 15.0
Body = Callable[[int], bytes]
"""Writes the body of the question with that number."""


@dataclass(frozen=True)
class Times:
    """What asking for some seconds came to."""

    seconds: float
    latencies: Sequence[float]
    """Of each question, in seconds."""
    last: bytes
    """The answer that came last, so that somebody can look whether it is right."""

    @property
    def per_second(self) -> float:
        """Answers in a second."""
        return len(self.latencies) / self.seconds


class Line:
    """A channel to ask on, and a queue of its own for the answers."""

    def __init__(self, channel: Channel, replies: str) -> None:
        self._channel = channel
        self._replies = replies
        self._numbers = count()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    async def ask(self, type_: str, body: bytes) -> bytes:
        """Ask; return the answer, unread."""
        number = str(next(self._numbers))
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        properties = Properties(
            content_type="application/json", correlation_id=number, reply_to=self._replies
        )
        await publish_at_once(self._channel, [Outgoing(names.QUERIES, type_, body, properties)])
        answer: bytes = await answered
        return answer

    def receive(self, delivery: AmqpMessage) -> None:
        """Hand an answer to who waits for it."""
        waiting = self._waiting.pop(delivery.header.properties.correlation_id or "", None)
        if waiting is not None and not waiting.done():
            waiting.set_result(delivery.body)


@asynccontextmanager
async def open_line(url: str) -> AsyncIterator[Line]:
    """Connect."""
    async with connect(url, name="benchmark client") as broker:
        yield await line_of(broker)


async def line_of(broker: Broker) -> Line:
    """Open a channel, and a queue for the answers."""
    channel = await broker.channel()
    queue = (await channel.queue_declare(exclusive=True)).queue or ""
    line = Line(channel, queue)

    async def receive(delivery: AmqpMessage) -> None:
        line.receive(delivery)

    await channel.basic_consume(queue, receive, no_ack=True)
    return line


def keep_asking(url: str, type_: str, body: Body, in_flight: int, seconds: float) -> Times:
    """Keep so many questions in flight for some seconds, in a loop of its own."""
    return uvloop.run(_keep_asking(url, type_, body, in_flight, seconds))


async def _keep_asking(url: str, type_: str, body: Body, in_flight: int, seconds: float) -> Times:
    latencies: list[float] = []
    last = b""
    async with open_line(url) as line:
        await line.ask(type_, body(0))
        numbers, start = count(1), monotonic()

        async def go_on() -> None:
            nonlocal last
            while (asked := monotonic()) < start + seconds:
                last = await line.ask(type_, body(next(numbers)))
                latencies.append(monotonic() - asked)

        try:
            async with asyncio.timeout(seconds + WITHIN_S):
                await asyncio.gather(*(go_on() for _ in range(in_flight)))
        except TimeoutError:
            raise UnmetError(f"no answer to {type_} within {WITHIN_S:g} s") from None
        return Times(monotonic() - start, latencies, last)


def encoded(**fields: object) -> bytes:
    """Write a body."""
    return json.dumps(fields).encode()
