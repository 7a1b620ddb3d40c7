"""Ends deliveries: sets faulty ones aside, tells senders the outcome, acknowledges."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from time import monotonic
from typing import Final

import structlog

from command_service import metrics
from shared.messages.commands import COMMANDS
from shared.messages.replies import CommandRejected, Outcome
from shared.rabbitmq.connection import Properties, ids_of
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.rabbitmq.dead_letter import DeadLetters, dead_letter
from shared.rabbitmq.publishing import PERSISTENT, Outgoing
from shared.rabbitmq.reply_to.publisher import ReplyPublisher

log = structlog.get_logger()

_counter: Final = cache(metrics.COMMANDS.labels)
SET_ASIDE: Final = frozenset({"validation_error", "misrouted_command", "unreadable_history"})


@dataclass(frozen=True, slots=True)
class Settlement:
    """A delivery and the outcome to tell its sender."""

    delivery: Delivery
    outcome: Outcome


class Settler:
    """Settles batches of deliveries in the order in which they came."""

    def __init__(
        self, consumer: Consumer, replies: ReplyPublisher, dead_letters: DeadLetters
    ) -> None:
        self._consumer = consumer
        self._replies = replies
        self._dead_letters = dead_letters

    async def answer(self, answered: Sequence[Settlement]) -> None:
        """Set aside and reply; `settle` follows, so that a death repeats, but loses nothing.

        Replies and acknowledgements travel on one connection, so that the broker has the reply
        when it has the acknowledgement; but for replies to direct addresses, which have another.
        What can't be set aside now is answered, and stays unsettled until it can.
        """
        await self._dead_letters.set_aside(_set_aside(answered))
        await self._replies.send(
            [reply for settlement in answered if (reply := _reply(settlement))]
        )

    async def settle(self, answered: Sequence[Settlement]) -> None:
        """Count and acknowledge what was answered."""
        _count(answered)
        _tell_set_aside(answered)
        await self._consumer.settle(settlement.delivery for settlement in answered)

    async def give_up(self, delivery: Delivery) -> bool:
        """Set aside a message that has ended a worker each time it was handled; whether it is."""
        log.error("delivery.set_aside", reason="delivery_limit", **_where(delivery))
        letter = dead_letter(delivery.message, "delivery_limit")
        is_kept = await self._dead_letters.set_aside([(delivery, letter)])
        await self._consumer.settle([delivery])
        return is_kept


def _reply(settlement: Settlement) -> Outgoing | None:
    """Write the reply, to whoever said where to."""
    asked = settlement.delivery.message.header.properties
    if not asked.reply_to:
        return None
    properties = Properties(
        content_type="application/json",
        correlation_id=asked.correlation_id or asked.message_id,
        delivery_mode=PERSISTENT,
        message_type=settlement.outcome.type,
    )
    return Outgoing("", asked.reply_to, settlement.outcome.model_dump_json().encode(), properties)


def _where(delivery: Delivery) -> dict[str, str | None]:
    return {"queue": delivery.source.queue, **ids_of(delivery.message)}


def _tell_set_aside(answered: Sequence[Settlement]) -> None:
    for settlement in answered:
        if (
            isinstance(settlement.outcome, CommandRejected)
            and settlement.outcome.error in SET_ASIDE
        ):
            log.warning(
                "delivery.set_aside", reason=settlement.outcome.error, **_where(settlement.delivery)
            )


def _set_aside(answered: Sequence[Settlement]) -> list[tuple[Delivery, Outgoing]]:
    """Copies, for the dead letters, of the messages that are at fault themselves."""
    return [
        (
            settlement.delivery,
            dead_letter(
                settlement.delivery.message, settlement.outcome.error, settlement.outcome.details
            ),
        )
        for settlement in answered
        if isinstance(settlement.outcome, CommandRejected) and settlement.outcome.error in SET_ASIDE
    ]


def _count(answered: Sequence[Settlement]) -> None:
    """Count a batch at once: looking up a labelled metric is dear."""
    for labels, count in Counter(map(_labels, answered)).items():
        _counter(*labels).inc(count)
    metrics.REDELIVERED.inc(
        sum(bool(settlement.delivery.message.redelivered) for settlement in answered)
    )
    now = monotonic()
    for settlement in answered:
        metrics.COMMAND_SECONDS.observe(now - settlement.delivery.arrived)


def _labels(settlement: Settlement) -> tuple[str, str]:
    kind = settlement.delivery.message.header.properties.message_type
    error = (
        settlement.outcome.error if isinstance(settlement.outcome, CommandRejected) else "accepted"
    )
    return kind if kind in COMMANDS else "other", error
