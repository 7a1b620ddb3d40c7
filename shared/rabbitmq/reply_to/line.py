"""A connection of its own for replies, which tells whether what was sent on it did it harm."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from aiormq.exceptions import ConnectionInternalError

from shared.rabbitmq.connection import Broker, Channel, connect, only_our_cancellation
from shared.rabbitmq.publishing import Outgoing, publish_at_once

LIVES_WITHIN_S: Final = 10.0
"""Longer than the heartbeats take to find out that nobody is there."""
MOST_UNSURE: Final = 16 << 20
"""Bytes that are kept to be sent again; what is older has most likely arrived."""


class ReplyLine:
    """An open connection and its channel; it is never mended, another one is opened."""

    def __init__(self, opened: AsyncExitStack, broker: Broker, channel: Channel) -> None:
        self._opened = opened
        self._broker = broker
        self._channel = channel
        self._unsure: deque[Outgoing] = deque()
        self._size = 0

    @classmethod
    async def open(cls, url: str, name: str) -> "ReplyLine":
        """Connect, under a name for operators; raises BROKER_ERRORS."""
        async with AsyncExitStack() as opening:
            broker = await opening.enter_async_context(connect(url, name=name))
            channel = await broker.channel()
            return cls(opening.pop_all(), broker, channel)

    @property
    def is_open(self) -> bool:
        """Whether it is not known to be lost."""
        return not self._broker.is_lost()

    @property
    def unsure(self) -> Sequence[Outgoing]:
        """What was sent and perhaps not carried out, the oldest first."""
        return self._unsure

    def was_refused(self) -> bool:
        """Whether the broker ended it for something that was sent, and not for want of a peer."""
        closing = self._channel.closing
        return (
            closing.done()
            and not closing.cancelled()
            and isinstance(closing.exception(), ConnectionInternalError)
        )

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Send, as fast as the broker reads; raises BROKER_ERRORS."""
        self._unsure.extend(messages)
        self._size += sum(len(message.body) for message in messages)
        while self._size > MOST_UNSURE and len(self._unsure) > 1:
            self._size -= len(self._unsure.popleft().body)
        with only_our_cancellation():
            await publish_at_once(self._channel, messages)

    async def barrier(self) -> None:
        """Return when the broker has carried out all that was sent before, and lives on."""
        newest = self._unsure[-1] if self._unsure else None
        with only_our_cancellation():
            async with asyncio.timeout(LIVES_WITHIN_S):
                await self._channel.basic_qos(prefetch_count=1)
        while newest is not None and self._unsure:
            done = self._unsure.popleft()
            self._size -= len(done.body)
            if done is newest:
                break

    async def close(self) -> None:
        """Close it, after what was sent on it."""
        await self._opened.aclose()
