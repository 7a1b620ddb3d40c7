"""Sends replies and answers; one that the broker chokes on costs nobody else's work."""

import re
from collections.abc import Sequence
from time import monotonic
from typing import Final

import structlog

from shared.rabbitmq.connection import Broker, Channel
from shared.rabbitmq.publishing import Outgoing, publish_at_once
from shared.rabbitmq.reply_to.direct import DirectReplies, Tell
from shared.rabbitmq.rpc_client import REPLY_QUEUE
from shared.telemetry.metrics import REPLIES_LOST

OURS: Final = re.compile(r"consent\..*|.*\.(parked|reader)", re.DOTALL)
"""Queues in which no reply is waited for: the services' own, and those beside a subscriber's.

Whoever may only ask must not write there with a worker's rights.
"""

RENEWED_AFTER_S: Final = 10.0
"""A queue may refuse for good what a channel sends to it: one that was full and told nobody that
it has room again, one whose leader had just died. Who waits for no confirm is not told either.
What a leader that died has not got is sent again within so long, where the channel is still open.
"""

log = structlog.get_logger()


class ReplyPublisher:
    """Publishes to whatever `reply_to` a sender gave, without waiting for confirms."""

    def __init__(self, broker: Broker, channel: Channel, direct: DirectReplies) -> None:
        self._broker = broker
        self._channel = channel
        self._opened_at = monotonic()
        self._former: Channel | None = None
        self._direct = direct

    @classmethod
    async def open(cls, broker: Broker, url: str, tell: Tell) -> "ReplyPublisher":
        """Open a channel; the connections for direct replies open when they are first needed.

        `tell` is told when these can't be opened.
        """
        return cls(broker, await broker.channel(), DirectReplies(url, tell))

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Send replies; those to direct addresses are on their way when it returns, or wait."""
        direct: list[Outgoing] = []
        others: list[Outgoing] = []
        for message in messages:
            if message.routing_key.startswith(f"{REPLY_QUEUE}."):
                direct.append(message)
            elif OURS.fullmatch(message.routing_key):
                _refuse(message)
            else:
                others.append(message)
        if others:
            await publish_at_once(await self._young_channel(), others)
        if direct:
            await self._direct.send(direct)

    async def _young_channel(self) -> Channel:
        if monotonic() - self._opened_at > RENEWED_AFTER_S:
            self._opened_at = monotonic()  # first, since others send meanwhile
            channel = await self._broker.channel()
            stale, self._former, self._channel = self._former, self._channel, channel
            if stale is not None:
                await self._broker.close_channel(stale)
        return self._channel

    async def close(self) -> None:
        """Close the connections for direct replies, after what was sent on them."""
        if self._broker.is_lost():
            await self._direct.abandon()
        else:
            await self._direct.close()


def _refuse(reply: Outgoing) -> None:
    log.warning(
        "reply.refused",
        correlation_ids=[reply.properties.correlation_id],
        reason="reply_to names a queue that takes no replies: name one of your own",
    )
    REPLIES_LOST.labels("not_a_reply_queue").inc()
