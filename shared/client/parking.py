"""Where a subscriber's events wait that its handler keeps failing on, in order for each patient."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, Protocol

import structlog
from pydantic import ValidationError

from shared.messages.cloud_event import CONTENT_TYPE, CloudEvent
from shared.messages.validation import details_of
from shared.rabbitmq.connection import AmqpMessage, Broker, Channel, Properties, ids_of
from shared.rabbitmq.publishing import PERSISTENT, Outgoing, publish
from shared.rabbitmq.topology import NO_LIMIT
from shared.values.oversized import LARGEST_EVENT, too_large

LONGEST_REASON: Final = 1000

Handle = Callable[[CloudEvent], Awaitable[None]]

log = structlog.get_logger()


class Parking(Protocol):
    """Keeps what could not be handled. A subscriber may have one of its own, in its database."""

    async def parked(self) -> Collection[str]:
        """Return the ids of the patients who have parked events; asked at each beginning."""

    async def park(self, event: CloudEvent, reason: str) -> None:
        """Keep an event, and its position with it; the same event may be given again."""


class ParkingQueue:
    """The queue `<queue>.parked`, behind an exchange of the same name, which its owner may use.

    At each beginning its events are handled once more, in order: mend what was wrong, and start
    the subscriber again. A message carries its reason in the header `x-consent-details`. What is
    no event is passed over, and stays there for whoever looks.
    """

    def __init__(self, broker: Broker, queue: str, handle: Handle, channel: Channel) -> None:
        self._broker = broker
        self._name = f"{queue}.parked"
        self._handle = handle
        self._channel = channel
        self._newest: dict[str, int] = {}
        """The last parked position of each patient who has one."""

    @classmethod
    async def open(cls, broker: Broker, queue: str, handle: Handle) -> "ParkingQueue":
        """Declare the queue."""
        parking = cls(broker, queue, handle, await broker.channel(confirms=True))
        await parking._declare()
        return parking

    async def parked(self) -> Collection[str]:
        """Handle what is parked, once; return who still has parked events."""
        channel = await self._broker.channel()
        while (found := await channel.basic_get(self._name)) and found.delivery_tag:
            event = self._read(found)
            if event is not None and await self._settled(event):
                await channel.basic_ack(found.delivery_tag, wait=False)
        await self._broker.close_channel(channel)  # what is left goes back, in order
        return self._newest.keys()

    async def park(self, event: CloudEvent, reason: str) -> None:
        """Keep an event, unless it is kept already."""
        if self._newest.get(event.subject, 0) < event.position:
            await publish(self._channel, self._message(event, reason), mandatory=True)
            self._newest[event.subject] = event.position

    async def _declare(self) -> None:
        await self._channel.exchange_declare(self._name, exchange_type="fanout", durable=True)
        arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
        await self._channel.queue_declare(self._name, durable=True, arguments=arguments)
        await self._channel.queue_bind(self._name, self._name)

    def _read(self, found: AmqpMessage) -> CloudEvent | None:
        """Read an event; None where it is none, which must not be in the way of those that are."""
        wrong = too_large(found.body, LARGEST_EVENT)
        try:
            if wrong is None:
                return CloudEvent.model_validate_json(found.body)
        except ValidationError as error:
            detail = details_of(error)[0]
            wrong = f"{detail.field} {detail.message}"
        log.error(
            "parked.not_an_event",
            queue=self._name,
            reason=f"{wrong}: take the message out of the queue",
            **ids_of(found),
        )
        return None

    async def _settled(self, event: CloudEvent) -> bool:
        """Whether it is handled now; a patient's later events wait behind one that is not."""
        if event.subject not in self._newest:
            try:
                await self._handle(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, the event stays
                _tell("event.still_parked", event, error)
            else:
                log.info("event.unparked", **_place(event))
                return True
        self._newest[event.subject] = event.position
        return False

    def _message(self, event: CloudEvent, reason: str) -> Outgoing:
        headers: dict[str, Any] = {"x-consent-details": reason[:LONGEST_REASON]}
        properties = Properties(
            content_type=CONTENT_TYPE,
            delivery_mode=PERSISTENT,
            message_id=event.id,
            message_type=event.type,
            headers=headers,
        )
        return Outgoing(self._name, "", event.to_json(), properties)


def _tell(what: str, event: CloudEvent, error: Exception) -> None:
    log.error(what, reason=type(error).__name__, **_place(event))


def _place(event: CloudEvent) -> dict[str, str | int]:
    return {
        "message_id": event.id,
        "correlation_id": event.correlationid,
        "partition": event.partition,
        "position": event.position,
    }
