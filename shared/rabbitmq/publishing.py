"""Publishes with confirms, window after window; what a queue refuses is told for each message."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import Final
from uuid import uuid4

import aiormq
from aiormq.abc import ChannelFrame

from shared.errors.connection import ConnectionLost
from shared.rabbitmq.connection import Broker, Channel, Properties, closing_reason
from shared.rabbitmq.wire.frames import frames_of
from shared.rabbitmq.wire.socket import hear_confirms_at_once, write_at_once

PUBLISH_WINDOW: Final = 500
"""Publishes in flight at once: of fewer the broker has confirmed the last before it has the next,
and one confirm for many makes aiormq walk all that are outstanding."""
PERSISTENT: Final = 2
RENEWED_AFTER_S: Final = 0.5
"""How long a channel is used at least, on which something was refused."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties


class Why(StrEnum):
    """Why the broker has not taken a message."""

    REFUSED = "refused"
    """A queue that it goes to is full, and set to say so."""
    UNROUTABLE = "unroutable"
    """There is no queue for it."""
    NO_EXCHANGE = "no_exchange"
    """What it is published to is missing itself."""
    UNANSWERED = "unanswered"
    """A queue that it goes to did not answer in time."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that was published and not taken."""

    message: Outgoing
    why: Why


async def publish(channel: Channel, message: Outgoing, *, mandatory: bool = False) -> None:
    """Publish one message; on a channel with confirms, return when the broker has it.

    Raises ConnectionLost where the connection ends while the broker is blocked.
    """
    await _until_read(channel)
    await channel.basic_publish(
        message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        properties=message.properties,
        mandatory=mandatory,
        wait=False,
    )


async def _until_read(channel: Channel) -> None:
    """Wait while the broker reads nothing: what piled up would hold up this side's heartbeats."""
    await channel.connection.ready()
    if channel.connection.is_closed:
        raise ConnectionLost("the connection closed while the broker was blocked")


async def publish_in_order(
    channel: Channel, messages: Sequence[Outgoing], *, within: float | None = None
) -> list[Refused]:
    """Publish with confirms, window after window; return what was refused, in order.

    What is not confirmed `within` so many seconds counts as refused too, though it may arrive
    yet. A window holds nothing back: what follows a refused message is published all the same.
    Raises what ended the channel; of that window some may have arrived.
    """
    refused: list[Refused] = []
    for start in range(0, len(messages), PUBLISH_WINDOW):
        refused += await _publish_window(channel, messages[start : start + PUBLISH_WINDOW], within)
    return refused


class Outlet:
    """Publishes with confirms, on a channel of its own, which refusals do not end.

    A queue that refused a channel tells it when there is room again, but not when the policy that
    limited it is lifted. So after a refusal the next channel asks anew.
    """

    def __init__(self, broker: Broker, channel: Channel) -> None:
        self._broker = broker
        self._channel = channel
        self._opened_at = monotonic()
        self._refused = False
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def open(cls, broker: Broker) -> "Outlet":
        """Open its first channel."""
        return cls(broker, await _open_outlet(broker))

    def begin(self, messages: Sequence[Outgoing]) -> "Window | None":
        """Write these now, for `publish` to go on with; None where it must do all of it."""
        if self._one_at_a_time.locked() or self._refused or self._broker.alarm.reason:
            return None
        return _begin_window(self._channel, messages)

    async def publish(
        self, messages: Sequence[Outgoing], *, within: float, begun: "Window | None" = None
    ) -> list[Refused]:
        """Publish as `publish_in_order` does, or wait for the confirms of what has begun."""
        async with self._one_at_a_time:
            if begun:
                fate = begun.refused(within)
            else:
                if self._refused and monotonic() - self._opened_at > RENEWED_AFTER_S:
                    await self._renew()
                fate = publish_in_order(self._channel, messages, within=within)
            try:
                refused = await fate
            except aiormq.exceptions.ChannelNotFoundEntity:
                await self._renew()
                return [Refused(message, Why.NO_EXCHANGE) for message in messages]
            self._refused = self._refused or bool(refused)
            return refused

    async def _renew(self) -> None:
        former, self._channel = self._channel, await _open_outlet(self._broker)
        self._opened_at, self._refused = monotonic(), False
        if not former.is_closed:
            await self._broker.close_channel(former)


async def _open_outlet(broker: Broker) -> Channel:
    channel = await broker.channel(confirms=True, expendable=True)
    hear_confirms_at_once(channel)
    return channel


async def publish_at_once(channel: Channel, messages: Sequence[Outgoing]) -> None:
    """Publish without confirms; return when all is written, as fast as the broker reads it."""
    if not messages:
        return
    await _until_read(channel)
    data = _as_one_write(channel, messages)
    if not write_at_once(channel, data):
        written = channel.create_future()
        async with channel.lock:
            await channel.write_queue.put(_for_library(data, written))
        await written


class Window:
    """Messages in flight; done when the broker has said of each whether it has it.

    aiormq keeps a future for each message, which is a third of what a publish costs; a light
    confirm stands in for it. What aiormq keeps for each of its own publishes is kept for these too,
    by its public names: who waits for a confirm, and which publish a message that comes back
    belongs to.
    """

    def __init__(self, channel: Channel, messages: Sequence[Outgoing]) -> None:
        self.messages = messages
        self._channel = channel
        self._ids = _identified(messages)
        self.data = _as_one_write(channel, messages, mandatory=True)
        self._confirms = [_Confirm(self) for _ in messages]
        self._left = len(messages)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = channel.closing
        self._closing.add_done_callback(self._channel_closed)

    def expect(self) -> None:
        """Expect confirms, since it is written; nothing is read before the next await."""
        channel = self._channel
        for message_id, confirm in zip(self._ids, self._confirms, strict=True):
            channel.delivery_tag += 1
            channel.confirmations[channel.delivery_tag] = confirm  # type: ignore[assignment] # it stands in for a future
            channel.message_id_delivery_tag[message_id] = channel.delivery_tag

    async def refused(self, within: float | None) -> list[Refused]:
        """Wait for all confirms, or so many seconds; return what was refused, in order.

        Raises what ended the channel.
        """
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._done
        finally:
            self.forget()
        return [
            Refused(message, confirm.fate)
            for message, confirm in zip(self.messages, self._confirms, strict=True)
            if confirm.fate is not None
        ]

    def forget(self) -> None:
        """Expect nothing any more."""
        self._closing.cancel()  # this observer alone
        for message_id in self._ids:
            self._channel.message_id_delivery_tag.pop(message_id, None)

    def count(self) -> None:
        """Note that another message's fate is known."""
        self._left -= 1
        if self._left == 0 and not self._done.done():
            self._done.set_result(None)

    def _channel_closed(self, closing: "asyncio.Future[object]") -> None:
        """Fail, since nothing is confirmed any more."""
        if not self._done.done():
            self._done.set_exception(
                closing_reason(closing) or ConnectionLost("the channel closed")
            )
            self._done.exception()  # retrieved here, since perhaps nobody waits any more


class _Confirm:
    """What the broker says of one message, told by aiormq as it would tell a future."""

    __slots__ = ("_window", "fate")

    def __init__(self, window: Window) -> None:
        self._window = window
        self.fate: Why | None = Why.UNANSWERED
        """None once the broker has the message."""

    def done(self) -> bool:
        """Whether it was told already."""
        return self.fate is not Why.UNANSWERED

    def cancelled(self) -> bool:
        """It can't be."""
        return False

    def set_result(self, _: object) -> None:
        """The broker has it."""
        self._end(None)

    def set_exception(self, error: BaseException) -> None:
        """A queue refuses it, or it came back."""
        returned = isinstance(error, aiormq.exceptions.PublishError)
        self._end(Why.UNROUTABLE if returned else Why.REFUSED)

    def _end(self, fate: Why | None) -> None:
        if not self.done():
            self.fate = fate
            self._window.count()


async def _publish_window(
    channel: Channel, messages: Sequence[Outgoing], within: float | None
) -> list[Refused]:
    """Write a window in one go, and wait for its confirms."""
    await _until_read(channel)
    async with channel.lock:
        window = Window(channel, messages)
        if not write_at_once(channel, window.data):
            await channel.write_queue.put(_for_library(window.data))
        window.expect()
    return await window.refused(within)


def _begin_window(channel: Channel, messages: Sequence[Outgoing]) -> Window | None:
    """Write a window now; None where something must be waited for first."""
    window = Window(channel, messages)
    if not write_at_once(channel, window.data):
        window.forget()
        return None
    window.expect()
    return window


def _identified(messages: Sequence[Outgoing]) -> list[str]:
    """Return the messages' ids, by which alone those that come back are known.

    One that has none gets one, and so does one that repeats another's: a sender may do either.
    """
    ids: dict[str, None] = {}
    for message in messages:
        properties = message.properties
        if not properties.message_id or properties.message_id in ids:
            properties.message_id = str(uuid4())
        ids[properties.message_id] = None
    return list(ids)


def _as_one_write(
    channel: Channel, messages: Iterable[Outgoing], *, mandatory: bool = False
) -> bytes:
    number, largest = channel.number, channel.max_content_size
    return b"".join(
        frame
        for message in messages
        for frame in frames_of(
            number,
            largest,
            message.exchange,
            message.routing_key,
            message.body,
            message.properties,
            mandatory,
        )
    )


def _for_library(data: bytes, drain_future: "asyncio.Future[object] | None" = None) -> ChannelFrame:
    """Give whole frames to the library to write, where the socket does not take them now."""
    return ChannelFrame(data, should_close=False, drain_future=drain_future)
