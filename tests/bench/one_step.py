"""What a single durable commit, and a single trip through the broker, take: latency's limit."""

import asyncio
from dataclasses import dataclass
from time import monotonic
from uuid import uuid4

import asyncpg

from shared.rabbitmq.connection import AmqpMessage, Properties, connect, consume
from shared.rabbitmq.publishing import PERSISTENT, Outgoing, publish
from tests.support.deployment import Deployment

TABLE = "CREATE TABLE IF NOT EXISTS single_rows (id uuid PRIMARY KEY, body text NOT NULL)"
INSERT = "INSERT INTO single_rows VALUES ($1, $2)"
QUEUE = "bench.round-trip"
BODY = "x" * 300


@dataclass(frozen=True)
class OneStep:
    """Seconds, one value per sample."""

    commits: list[float]
    round_trips: list[float]

    def both(self) -> list[float]:
        """One commit and one round trip."""
        return [sum(pair) for pair in zip(self.commits, self.round_trips, strict=True)]


async def one_step(deployment: Deployment, samples: int, rate_per_s: float) -> OneStep:
    """Measure both in turns, by the clock, while nothing else happens.

    What rests between two samples wakes up slower: so the limit is measured at each rate too.
    """
    commits, trips = [], []
    database = await asyncpg.connect(deployment.event_store_url, ssl=False)
    try:
        await database.execute(TABLE)
        async with connect(deployment.rabbitmq_url, name="benchmark round trip") as broker:
            channel = await broker.channel(confirms=True)
            await channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
            arrived = asyncio.Queue[AmqpMessage]()
            reading = await broker.channel()
            await consume(reading, QUEUE, 1, arrived.put_nowait)
            began = monotonic()
            for number in range(samples):
                await asyncio.sleep(max(0.0, began + number / rate_per_s - monotonic()))
                start = monotonic()
                await database.execute(INSERT, uuid4(), BODY)
                committed = monotonic()
                message = Outgoing("", QUEUE, BODY.encode(), Properties(delivery_mode=PERSISTENT))
                await publish(channel, message, mandatory=True)
                delivery = await arrived.get()
                done = monotonic()
                await reading.basic_ack(delivery.delivery_tag or 0, wait=False)
                commits.append(committed - start)
                trips.append(done - committed)
    finally:
        await database.close()
    return OneStep(commits, trips)
