"""Does a worker's AMQP steps with nothing between: the limit that its figures are compared with.

`python -m tests.bench.bare steps COUNT` consumes commands, publishes for each a message of an
event's size with confirm, and a reply. `… acknowledge COUNT` consumes and acknowledges events.
`… echo` answers each check with the same, and never ends.
All run as a worker does: a process of its own, uvloop, the same queues and prefetch.

This is the fastest way through aio-pika's underlay that was found: whatever has arrived is handled
at once, all that it causes is written in one piece, deliveries are acknowledged together, and
confirms are waited for in windows, beside the next batch. It reads deliveries as the library does;
the services themselves read them past it (`shared.rabbitmq.wire`).
"""

import asyncio
import os
from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import Annotated
from uuid import uuid4

import typer
import uvloop
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from command_service import worker as command_worker
from projection_service import answer_worker
from projection_service import worker as projection_worker
from shared.messages import names
from shared.messages.cloud_event import CONTENT_TYPE
from shared.rabbitmq.connection import AmqpMessage, Broker, Channel, connect

MAX_BATCH = 500
WINDOW = 100
EVENT = b"x" * 512
"""As large as the event of a grant."""
REPLY = b"x" * 300
ANSWER = b'{"status":"ok","has_consent":true,"version":1}'

app = typer.Typer(add_completion=False)
Total = Annotated[int, typer.Argument(help="How many messages there are.")]


class Inbox:
    """What has arrived on some queues."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[Channel, int, AmqpMessage]] = deque()
        self._news = asyncio.Event()

    async def read(self, broker: Broker, partition: int, queue: str, prefetch: int) -> None:
        """Consume a queue, on a channel of its own."""
        channel = await broker.channel()

        def arrive(delivery: AmqpMessage) -> None:
            self._arrived.append((channel, partition, delivery))
            self._news.set()

        await channel.basic_qos(prefetch_count=prefetch)
        await channel.basic_consume(queue, arrive)  # type: ignore[arg-type] # it is wrapped

    async def take(self) -> list[tuple[Channel, int, AmqpMessage]]:
        """Wait for the first, and return whatever there is."""
        while not self._arrived:
            self._news.clear()
            await self._news.wait()
        return [self._arrived.popleft() for _ in range(min(MAX_BATCH, len(self._arrived)))]


async def acknowledge(batch: Iterable[tuple[Channel, int, AmqpMessage]]) -> None:
    """Settle a batch, by one acknowledgement for each channel."""
    newest = {channel: delivery.delivery_tag or 0 for channel, _, delivery in batch}
    for channel, tag in newest.items():
        await channel.basic_ack(tag, multiple=True, wait=False)


class Events:
    """Publishes beside the rest, window after window, each confirmed before the next."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: deque[tuple[int, str]] = deque()
        self._news = asyncio.Event()

    def add(self, batch: Iterable[tuple[Channel, int, AmqpMessage]]) -> None:
        """Publish an event for each of these."""
        self._waiting += [(p, d.header.properties.message_id or "") for _, p, d in batch]
        self._news.set()

    async def run(self, total: int) -> None:
        """Return when so many are confirmed."""
        done = 0
        while done < total:
            while not self._waiting:
                self._news.clear()
                await self._news.wait()
            some = min(WINDOW, len(self._waiting))
            done += some
            for confirm in await self._write([self._waiting.popleft() for _ in range(some)]):
                await confirm

    async def _write(self, window: list[tuple[int, str]]) -> "list[asyncio.Future[object]]":
        channel = self._channel
        frames = [frame for event in window for frame in _event(*event)]
        confirms: list[asyncio.Future[object]] = [channel.create_future() for _ in window]
        await channel.write_queue.put(ChannelFrame.marshall(channel.number, frames))
        for confirm in confirms:
            channel.delivery_tag += 1
            channel.confirmations[channel.delivery_tag] = confirm
        return confirms


def _event(partition: int, cause: str) -> tuple[Basic.Publish, ContentHeader, ContentBody]:
    properties = Basic.Properties(
        content_type=CONTENT_TYPE,
        delivery_mode=2,
        message_id=str(uuid4()),
        message_type="ConsentGranted",
        correlation_id=cause,
    )
    return (
        Basic.Publish(
            exchange=names.EVENTS,
            routing_key=f"granted.doctor.exams.{partition}",
            mandatory=True,
        ),
        ContentHeader(body_size=len(EVENT), properties=properties),
        ContentBody(EVENT),
    )


def _reply(delivery: AmqpMessage) -> tuple[Basic.Publish, ContentHeader, ContentBody]:
    asked = delivery.header.properties
    properties = Basic.Properties(
        content_type="application/json",
        correlation_id=asked.correlation_id or asked.message_id,
        delivery_mode=2,
        message_type="CommandAccepted",
    )
    return (
        Basic.Publish(exchange="", routing_key=asked.reply_to or ""),
        ContentHeader(body_size=len(REPLY), properties=properties),
        ContentBody(REPLY),
    )


async def _steps(total: int) -> None:
    async with connect(os.environ["RABBITMQ_URL"], name="bare steps") as broker:
        inbox, replies = Inbox(), await broker.channel()
        events = Events(await broker.channel(confirms=True))
        for number in range(int(os.environ["CONSENT_PARTITIONS"])):
            queue = names.command_queue(number)
            await inbox.read(broker, number, queue, command_worker.PREFETCH)
        typer.echo("ready")
        async with asyncio.TaskGroup() as beside:
            beside.create_task(events.run(total))
            await _handle(inbox, events, replies, total)
        await replies.basic_qos(prefetch_count=1)  # the broker has all that was written before


async def _handle(inbox: Inbox, events: Events, replies: Channel, total: int) -> None:
    done = 0
    while done < total:
        batch = await inbox.take()
        events.add(batch)
        frames = [frame for _, _, delivery in batch for frame in _reply(delivery)]
        await replies.write_queue.put(ChannelFrame.marshall(replies.number, frames))
        await acknowledge(batch)
        done += len(batch)


async def _acknowledge(total: int) -> None:
    async with connect(os.environ["RABBITMQ_URL"], name="bare acknowledging") as broker:
        inbox = Inbox()
        for number in range(int(os.environ["CONSENT_PARTITIONS"])):
            queue = names.projection_queue(number)
            await inbox.read(broker, number, queue, projection_worker.PREFETCH)
        typer.echo("ready")
        done, batch = 0, []
        while done < total:
            batch = await inbox.take()
            await acknowledge(batch)
            done += len(batch)
        for channel in {channel for channel, _, _ in batch}:
            await channel.basic_qos(prefetch_count=1)
        typer.echo(f"done {monotonic()}")


@app.command()
def steps(total: Total) -> None:
    """Consume, publish with confirm, reply."""
    uvloop.run(_steps(total))


@app.command("acknowledge")
def acknowledge_all(total: Total) -> None:
    """Consume and acknowledge."""
    uvloop.run(_acknowledge(total))


async def _echo() -> None:
    async with connect(os.environ["RABBITMQ_URL"], name="bare echo") as broker:
        inbox, replies = Inbox(), await broker.channel()
        await inbox.read(broker, 0, names.CHECKS, answer_worker.CHECK_PREFETCH)
        typer.echo("ready")
        while True:
            batch = await inbox.take()
            frames = [frame for _, _, delivery in batch for frame in _echoed(delivery)]
            await replies.write_queue.put(ChannelFrame.marshall(replies.number, frames))
            await acknowledge(batch)


def _echoed(delivery: AmqpMessage) -> tuple[Basic.Publish, ContentHeader, ContentBody]:
    asked = delivery.header.properties
    properties = Basic.Properties(
        content_type="application/json",
        correlation_id=asked.correlation_id,
        message_type="HasConsentAnswer",
    )
    return (
        Basic.Publish(exchange="", routing_key=asked.reply_to or ""),
        ContentHeader(body_size=len(ANSWER), properties=properties),
        ContentBody(ANSWER),
    )


@app.command()
def echo() -> None:
    """Consume checks, and answer each with the same, until ended."""
    uvloop.run(_echo())


if __name__ == "__main__":
    app()
