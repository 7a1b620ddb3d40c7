"""Copies messages that are at fault into the dead letters, each with the reason beside it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import structlog
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

from shared.messages import names
from shared.messages.replies import Detail
from shared.rabbitmq.connection import AmqpMessage, Properties
from shared.rabbitmq.consumer import Consumer, Delivery, QueueConsumer
from shared.rabbitmq.publishing import PERSISTENT, Outgoing, Outlet
from shared.telemetry.metrics import DEAD_LETTERS_WAITING
from shared.telemetry.readiness import Readiness
from shared.values.oversized import Beginning, beginning

LARGEST_HEADER: Final = 120_000
"""Bytes; a header frame above the 128 KiB that RabbitMQ agrees on would end the connection."""
STEERING: Final = frozenset({"CC", "BCC"})
"""Headers by which RabbitMQ would deliver copies to other queues, with this worker's rights."""
COPIED: Final = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "message_type",
    "app_id",
)
"""All but `user_id`, which the broker would compare with ours, and `expiration`, which would
let the dead letter expire: these two are kept as headers."""
TAKEN_WITHIN_S: Final = 2.0
RETRY_S: Final = 0.5
LONGEST_PAUSE_S: Final = 5.0
SAY_AGAIN_S: Final = 60.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A letter that the dead letters did not take, and the delivery that stays unsettled for it."""

    source: QueueConsumer
    tag: int
    letter: Outgoing


class DeadLetters:
    """Sets messages aside. Where their queue is full or missing, nobody else waits for that.

    A message that can't be set aside stays unsettled, and is tried again with growing pauses;
    whatever came beside and behind it goes on. Nothing is settled before it is kept safely.
    """

    def __init__(self, outlet: Outlet, consumer: Consumer, readiness: Readiness) -> None:
        self._outlet = outlet
        self._consumer = consumer
        self._readiness = readiness
        self._waiting: list[Waiting] = []
        self._any_waiting = asyncio.Event()
        self._said_at = -SAY_AGAIN_S
        DEAD_LETTERS_WAITING.set_function(lambda: len(self._waiting))

    async def set_aside(self, letters: Sequence[tuple[Delivery, Outgoing]]) -> bool:
        """Keep these letters, or hold the deliveries that they are copies of; whether all are kept.

        While some wait, the next ones wait behind them: a try may take its time.
        """
        if not letters:
            return True
        refused = {id(letter) for _, letter in letters}
        if not self._waiting:
            refused = await self._publish(letter for _, letter in letters)
        for delivery, letter in letters:
            if id(letter) in refused and await self._consumer.hold(delivery):
                self._waiting.append(Waiting(delivery.source, delivery.tag, letter))
        if refused:
            self._any_waiting.set()
        return not refused

    async def run(self) -> None:
        """Try again what waits, until cancelled."""
        try:
            while True:
                await self._any_waiting.wait()
                await self._empty()
        finally:
            self._readiness.report(names.DEAD_LETTERS)

    async def _empty(self) -> None:
        """Return when nothing waits any more."""
        pause = RETRY_S
        while self._waiting:
            self._tell()
            await asyncio.sleep(pause)
            taken = await self._try_again(self._waiting[:1])  # one first: many may be large
            taken = taken and await self._try_again(self._waiting)
            pause = RETRY_S if taken else min(2 * pause, LONGEST_PAUSE_S)
        self._any_waiting.clear()
        self._said_at = -SAY_AGAIN_S
        self._readiness.report(names.DEAD_LETTERS)
        log.info("dead_letters.kept")

    async def _try_again(self, waiting: Sequence[Waiting]) -> bool:
        """Settle what is kept now, and forget what went back meanwhile; whether all are."""
        held = [entry for entry in waiting if self._consumer.is_held(entry.source, entry.tag)]
        refused = await self._publish(entry.letter for entry in held)
        kept = {id(entry.letter) for entry in waiting} - refused
        for entry in held:
            if id(entry.letter) in kept and self._consumer.is_held(entry.source, entry.tag):
                await self._consumer.release(entry.source, entry.tag)
        self._waiting = [entry for entry in self._waiting if id(entry.letter) not in kept]
        return not refused

    async def _publish(self, letters: Iterable[Outgoing]) -> set[int]:
        """Publish letters; return the identities of those that were not taken."""
        refused = await self._outlet.publish(list(letters), within=TAKEN_WITHIN_S)
        return {id(refusal.message) for refusal in refused}

    def _tell(self) -> None:
        """Say that messages wait: in the readiness at once, in the log now and then."""
        reason = f"{names.DEAD_LETTERS} is full or missing: messages at fault wait to be set aside"
        self._readiness.report(names.DEAD_LETTERS, "dead_letters", reason)
        if monotonic() - self._said_at >= SAY_AGAIN_S:
            self._said_at = monotonic()
            log.error("dead_letters.refused", waiting=len(self._waiting), reason=reason)


def dead_letter(message: AmqpMessage, error: str, details: Sequence[Detail] = ()) -> Outgoing:
    """Copy a delivery for the dead letters; `error` and `details` say why.

    Of a long body the beginning is kept, so that nobody can fill the broker's disk by them.
    """
    properties, kept = message.header.properties, beginning(message.body)
    found = _reason(message, kept, error, details)
    reason = {name: value for name, value in found.items() if value is not None}
    original = {
        _harmless(name): value
        for name, value in (properties.headers or {}).items()
        if name not in found  # its sender may not say what only we can know
    }
    copy = _copy(properties, {**original, **reason})
    if not _fits(copy, len(kept)):
        copy = _copy(properties, {**reason, "x-consent-headers": "left out: too large or odd"})
    return Outgoing("", names.DEAD_LETTERS, kept, copy)


def _reason(
    message: AmqpMessage, kept: Beginning, error: str, details: Sequence[Detail]
) -> dict[str, Any]:
    properties = message.header.properties
    return {
        "x-consent-error": error,
        "x-consent-details": "; ".join(f"{detail.field}: {detail.message}" for detail in details),
        "x-consent-message-id": properties.message_id,
        "x-consent-body-size": kept.size,
        "x-consent-body-sha256": kept.sha256,
        "x-consent-exchange": message.exchange,
        "x-consent-routing-key": message.routing_key,
        "x-consent-user-id": properties.user_id,
        "x-consent-expiration": properties.expiration,
    }


def _harmless(name: str) -> str:
    return f"x-consent-original-{name}" if name in STEERING else name


def _copy(properties: Properties, headers: Mapping[str, Any]) -> Properties:
    kept = {name: getattr(properties, name) for name in COPIED}
    return Properties(**kept, headers=dict(headers), delivery_mode=PERSISTENT)


def _fits(properties: Properties, body_size: int) -> bool:
    header = ContentHeader(0, body_size, properties)
    try:
        return len(header.marshal()) <= LARGEST_HEADER
    except (PAMQPException, TypeError, ValueError, OverflowError):
        return False  # the library reads more kinds of values than it writes
