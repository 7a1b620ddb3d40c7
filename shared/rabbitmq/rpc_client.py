"""Asks over AMQP and waits for the reply, through RabbitMQ's direct reply-to."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from aiormq.exceptions import DeliveryError

from shared.errors import NoAnswer
from shared.errors.connection import ConnectionLost
from shared.rabbitmq.connection import AmqpMessage, Broker, Channel, Properties
from shared.rabbitmq.publishing import Outgoing, publish
from shared.telemetry.tracing import context_headers

REPLY_QUEUE: Final = "amq.rabbitmq.reply-to"
"""A pseudo-queue that needs no declaring: replies come straight to this channel."""


@dataclass(frozen=True, slots=True)
class Request:
    """A message that asks for a reply."""

    exchange: str
    routing_key: str
    type: str
    body: bytes
    message_id: str
    """Also the correlation id; the same request may wait twice under it."""
    persistent: bool = False


class Requests:
    """Sends requests on a channel and hands each reply to whoever waits for it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: dict[str, set[asyncio.Future[AmqpMessage]]] = defaultdict(set)
        channel.closing.add_done_callback(self._closed)

    @classmethod
    async def open(cls, broker: Broker) -> "Requests":
        """Open a channel for requests and their replies."""
        channel = await broker.channel(confirms=True)
        requests = cls(channel)
        await channel.basic_consume(REPLY_QUEUE, requests._arrived, no_ack=True)  # type: ignore[arg-type] # aiormq wraps it
        return requests

    async def ask(self, request: Request, within: float) -> AmqpMessage:
        """Send a request and return its reply.

        One that is not persistent expires on its queue after `within` seconds: nobody would wait
        for its answer any more.

        Raises NoAnswer after `within` seconds, or when no queue takes the request;
        ConnectionLost when the connection goes, whether or not the request arrived.
        """
        reply: asyncio.Future[AmqpMessage] = asyncio.get_running_loop().create_future()
        self._waiting[request.message_id].add(reply)
        try:
            async with asyncio.timeout(within):
                await publish(self._channel, _message(request, within), mandatory=True)
                return await reply
        except TimeoutError:
            raise NoAnswer(f"no answer to {request.type} within {within:.3g} s") from None
        except DeliveryError as error:
            raise NoAnswer(f"{request.type} reached no queue: {error}") from error
        finally:
            self._forget(request.message_id, reply)

    def _forget(self, message_id: str, reply: "asyncio.Future[AmqpMessage]") -> None:
        self._waiting[message_id].discard(reply)
        if not self._waiting[message_id]:
            del self._waiting[message_id]

    def _closed(self, _: object) -> None:
        for waiting in self._waiting.values():
            for reply in waiting:
                if not reply.done():
                    reply.set_exception(ConnectionLost("the connection closed before the reply"))

    def _arrived(self, message: AmqpMessage) -> None:
        for waiting in self._waiting.get(message.header.properties.correlation_id or "", ()):
            if not waiting.done():
                waiting.set_result(message)


def _message(request: Request, within: float) -> Outgoing:
    expiration = None if request.persistent else str(max(1, round(within * 1000)))
    properties = Properties(
        content_type="application/json",
        correlation_id=request.message_id,
        delivery_mode=2 if request.persistent else 1,
        expiration=expiration,
        headers=dict(context_headers()) or None,
        message_id=request.message_id,
        message_type=request.type,
        reply_to=REPLY_QUEUE,
    )
    return Outgoing(request.exchange, request.routing_key, request.body, properties)
