"""What a single durable commit, and a single trip through the broker, take: latency's limit."""

import asyncio
from dataclasses import dataclass
from time import monotonic
from uuid import uuid4

import asyncpg

from shared.broker import PERSISTENT, Delivery, Outgoing, Properties, connect, consume, publish
from tests.deployment import Deployment

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


async def one_step(deployment: Deployment, samples: int) -> OneStep:
    """Measure both in turns, while nothing else happens."""
    commits, trips = [], []
    database = await asyncpg.connect(deployment.event_store_url, ssl=False)
    try:
        await database.execute(TABLE)
        async with connect(deployment.rabbitmq_url, name="benchmark round trip") as broker:
            channel = await broker.channel(confirms=True)
            await channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
            arrived = asyncio.Event()

            def arrive(_: Delivery) -> None:
                arrived.set()

            reading = await broker.channel()
            await consume(reading, QUEUE, 1_000, arrive)
            for _ in range(samples):
                start = monotonic()
                await database.execute(INSERT, uuid4(), BODY)
                committed = monotonic()
                arrived.clear()
                message = Outgoing("", QUEUE, BODY.encode(), Properties(delivery_mode=PERSISTENT))
                await publish(channel, message, mandatory=True)
                await arrived.wait()
                commits.append(committed - start)
                trips.append(monotonic() - committed)
    finally:
        await database.close()
    return OneStep(commits, trips)
