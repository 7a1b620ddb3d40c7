"""Keeps messages in their queues while the workers start, and lets them go all at once.

The queues of commands and events have a single active consumer: the first that came. The gate is
that one, with a single delivery in hand per queue; the workers come second, and are ready and
idle. When the gate's connection closes, its deliveries go back to the front of their queues and
the worker becomes the active consumer of all of them.
"""

import asyncio
from collections.abc import Iterable

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage


class Gate:
    """Closed from the beginning."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    @classmethod
    async def close(cls, url: str, queues: Iterable[str]) -> "Gate":
        """Become the active consumer of these queues."""
        connection = await aio_pika.connect(url)
        for name in queues:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=1)
            queue = await channel.get_queue(name, ensure=False)
            await queue.consume(_keep)
        return cls(connection)

    async def open(self) -> None:
        """Let the workers have everything."""
        await self._connection.close()


async def _keep(message: AbstractIncomingMessage) -> None:
    """Leave it unsettled."""
    del message
    await asyncio.sleep(0)
