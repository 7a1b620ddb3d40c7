"""Sends replies and answers; one that the broker chokes on costs nobody else's work.

An address of RabbitMQ's direct reply-to names a process of the broker. Where it is forged, the
broker (3.10 at least) ends the connection that sends to it. So replies to such addresses have a
connection of their own, which is opened again when it is lost.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import structlog

from shared.broker import BROKER_ERRORS, Broker, Channel, Outgoing, connect, publish_at_once
from shared.reasons import reason_of
from shared.requests import REPLY_QUEUE

log = structlog.get_logger()

REOPEN_S: Final = 2


class ReplyChannel:
    """Publishes to whatever `reply_to` a sender gave, without waiting for confirms."""

    def __init__(self, channel: Channel, url: str) -> None:
        self._channel = channel
        self._url = url
        self._direct = AsyncExitStack()
        self._direct_broker: Broker | None = None
        self._direct_channel: Channel | None = None

    @classmethod
    async def open(cls, broker: Broker, url: str) -> "ReplyChannel":
        """Open a channel; the other connection opens when it is first needed."""
        return cls(await broker.channel(), url)

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Send replies; those to direct addresses may be lost with their connection."""
        direct = [one for one in messages if one.routing_key.startswith(f"{REPLY_QUEUE}.")]
        others = [one for one in messages if not one.routing_key.startswith(f"{REPLY_QUEUE}.")]
        await publish_at_once(self._channel, others)
        try:
            if direct:
                await publish_at_once(await self._direct_reply_channel(), direct)
        except BROKER_ERRORS as error:
            lost = [one.properties.correlation_id for one in direct]
            log.warning("reply.lost", correlation_ids=lost, reason=reason_of(error))

    async def close(self) -> None:
        """Close the connection for direct replies, after what was sent on it."""
        if self._direct_channel is not None and self._direct_broker is not None and self._is_open():
            await self._direct_broker.close_channel(self._direct_channel)
        await self._direct.aclose()

    async def _direct_reply_channel(self) -> Channel:
        if self._direct_channel is None or not self._is_open():
            await self._direct.aclose()
            async with asyncio.timeout(REOPEN_S):
                self._direct_broker = await self._direct.enter_async_context(
                    connect(self._url, name="direct replies")
                )
                self._direct_channel = await self._direct_broker.channel()
        return self._direct_channel

    def _is_open(self) -> bool:
        return self._direct_broker is not None and not self._direct_broker.is_lost()
