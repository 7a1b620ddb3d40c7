"""Asks over AMQP and waits for the reply, through RabbitMQ's direct reply-to."""

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final, NoReturn

from aiormq.exceptions import DeliveryError, PublishError

from shared.errors import NoAnswer, NotTaken, Unroutable
from shared.errors.connection import BROKER_ERRORS, ConnectionLost
from shared.rabbitmq.connection import (
    AmqpMessage,
    Broker,
    Channel,
    Properties,
    only_our_cancellation,
)
from shared.rabbitmq.publishing import RENEWED_AFTER_S, Outgoing, publish
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


class _Line:
    """A channel for requests, and whoever waits for a reply on it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.opened_at = monotonic()
        self.is_left = False
        self._waiting: dict[str, set[asyncio.Future[AmqpMessage]]] = defaultdict(set)
        channel.closing.add_done_callback(self._closed)

    @classmethod
    async def open(cls, broker: Broker) -> "_Line":
        channel = await broker.channel(confirms=True)
        line = cls(channel)
        await channel.basic_consume(REPLY_QUEUE, line._arrived, no_ack=True)  # type: ignore[arg-type] # aiormq wraps it
        return line

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits."""
        return not self._waiting

    async def ask(self, request: Request, within: float) -> AmqpMessage:
        """Send a request and wait for its reply, however long."""
        reply: asyncio.Future[AmqpMessage] = asyncio.get_running_loop().create_future()
        self._waiting[request.message_id].add(reply)
        try:
            await publish(self.channel, _message(request, within), mandatory=True)
            return await reply
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


class Requests:
    """Sends requests on a channel and hands each reply to whoever waits for it.

    After a refusal the next request goes out on a channel of its own. RabbitMQ 3.10 refuses what a
    channel sends to a queue for good, where it first sent to it just after the queue's leader died.
    """

    def __init__(self, broker: Broker, line: _Line) -> None:
        self._broker = broker
        self._line = line
        self._renewing = asyncio.Lock()

    @classmethod
    async def open(cls, broker: Broker) -> "Requests":
        """Open a channel for requests and their replies."""
        return cls(broker, await _Line.open(broker))

    async def ask(self, request: Request, within: float) -> AmqpMessage:
        """Send a request and return its reply.

        One that is not persistent expires on its queue after `within` seconds: nobody would wait
        for its answer any more.

        Raises NoAnswer after `within` seconds, Unroutable when there is no queue for the request,
        NotTaken when its queue refuses it now; ConnectionLost when the connection goes, whether or
        not the request arrived.
        """
        line = self._line
        try:
            async with asyncio.timeout(within):
                try:
                    with only_our_cancellation():
                        return await line.ask(request, within)
                except DeliveryError as error:
                    await self._refused(line, request, error)
        except TimeoutError:
            raise NoAnswer(f"no answer to {request.type} within {within:.3g} s") from None
        finally:
            await self._leave(line)

    async def _refused(self, line: _Line, request: Request, error: DeliveryError) -> NoReturn:
        if isinstance(error, PublishError):
            raise Unroutable(f"{request.type} reached no queue: {error}") from error
        async with self._renewing:
            if line is self._line and monotonic() - line.opened_at > RENEWED_AFTER_S:
                self._line = await _Line.open(self._broker)
        raise NotTaken(f"{request.type} was refused by its queue") from error

    async def _leave(self, line: _Line) -> None:
        """Close a channel that another one has replaced, once nobody waits on it."""
        if line is not self._line and line.is_idle and not line.is_left:
            line.is_left = True
            with suppress(*BROKER_ERRORS):
                await self._broker.close_channel(line.channel)


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
