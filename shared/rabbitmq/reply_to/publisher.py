"""Sends replies and answers; one that the broker chokes on costs nobody else's work."""

import re
from collections.abc import Sequence
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

log = structlog.get_logger()


class ReplyPublisher:
    """Publishes to whatever `reply_to` a sender gave, without waiting for confirms."""

    def __init__(self, broker: Broker, channel: Channel, direct: DirectReplies) -> None:
        self._broker = broker
        self._channel = channel
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
        await publish_at_once(self._channel, others)
        if direct:
            await self._direct.send(direct)

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
