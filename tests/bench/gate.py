"""Keeps commands in their queues while the workers start, and lets them go all at once.

The queues of the commands have a single active consumer: the first that came. The gate is that
one, with a single delivery in hand per queue; the workers come second, and are ready and idle.
When the gate's connection closes, its deliveries go back to the front of their queues and the
worker becomes the active consumer of all of them.
"""

import asyncio

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage


class Gate:
    """Closed from the beginning."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    @classmethod
    async def close(cls, url: str, partitions: int) -> "Gate":
        """Become the active consumer of all commands' queues."""
        connection = await aio_pika.connect(url)
        for number in range(partitions):
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=1)
            queue = await channel.get_queue(f"consent.commands.{number}", ensure=False)
            await queue.consume(_keep)
        return cls(connection)

    async def open(self) -> None:
        """Let the workers have everything."""
        await self._connection.close()


async def _keep(message: AbstractIncomingMessage) -> None:
    """Leave it unsettled."""
    del message
    await asyncio.sleep(0)
