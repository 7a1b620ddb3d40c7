"""Follows the logs of some partitions: arrivals in order, and what is missing from the log."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

import structlog
from pydantic import ValidationError

from shared.errors import NoAnswer, first_cause
from shared.errors.text import reason_of
from shared.event_log.log_client import LogClient
from shared.event_log.position_tracker import Arrival, PositionTracker
from shared.messages.cloud_event import CloudEvent
from shared.messages.replies import Detail
from shared.messages.validation import details_of
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.values.oversized import LARGEST_EVENT, too_large

HEAD_CHECK_S: Final = 5.0
"""After so long a silence the log is asked whether something has been missed."""
FIRST_CHECK_S: Final = 0.5
RETRY_S: Final = 0.5
READ_AT_ONCE: Final = 4
"""Partitions whose log is read side by side: a page is on its way while another is applied."""

log = structlog.get_logger()


class EventHandler(Protocol):
    """What events are followed for."""

    async def apply(self, events: Sequence[CloudEvent]) -> None:
        """Apply events that follow what was applied before, in order for each partition.

        None of them comes again once it returns; whatever it raises ends the following.
        """

    async def set_aside(self, delivery: Delivery, details: Sequence[Detail]) -> None:
        """Keep a delivery that is no event of the log; it is settled afterwards."""

    def on_batch(
        self, deliveries: int, events: int, partitions: Sequence[int], seconds: float
    ) -> None:
        """Note that so many deliveries were handled, and the new events among them."""

    def on_log_page(self, events: int) -> None:
        """Note that so many events came from the log."""


@dataclass(eq=False, slots=True)
class Followed:
    """One partition that is followed."""

    partition: int
    track: PositionTracker[Delivery]
    busy_at: float
    """When something last arrived."""
    leaving: bool = False
    """Whether it is being handed over: nothing is held any more, nor read from the log."""
    reading: bool = False
    """Whether its log is being read."""

    def is_due(self, now: float) -> bool:
        """Whether the log must be asked what follows."""
        if self.leaving or self.reading:
            return False
        quiet = now - self.busy_at > HEAD_CHECK_S and not self.track.starts_at_first
        return bool(self.track.held) or quiet


class Follower:
    """Hands each event of the partitions it follows to a handler, once and in order.

    An event is *seen*, *next*, or behind a *gap*. What is behind a gap is held, unsettled, while
    the log is read from where the gap begins; a partition where nothing arrives has its log read
    now and then, so that nothing lost goes unnoticed.
    """

    def __init__(
        self, consumer: Consumer, log_client: LogClient, handler: EventHandler, *, most: int
    ) -> None:
        """Hand over at most `most` events at a time."""
        self._consumer = consumer
        self._log = log_client
        self._handler = handler
        self._most = most
        self._followed: dict[int, Followed] = {}
        self._one_at_a_time = asyncio.Lock()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._gap = asyncio.Event()

    def open(self, partition: int, track: PositionTracker[Delivery]) -> None:
        """Begin with a partition, with what follows its track's position."""
        due = monotonic() - HEAD_CHECK_S + FIRST_CHECK_S
        self._followed[partition] = Followed(partition, track, busy_at=due)

    def position(self, partition: int) -> int:
        """Return the position up to which everything is applied."""
        return self._followed[partition].track.position

    def let_go(self, partition: int) -> None:
        """Wait for no gap any more: what is held goes back when its queue is closed."""
        followed = self._followed[partition]
        self._consumer.let_go(followed.track.held.values())
        followed.track.held.clear()
        followed.leaving = True

    async def close(self, partition: int) -> None:
        """Stop with a partition that was let go, once nothing of it is being applied."""
        async with self._one_at_a_time:
            del self._followed[partition]

    async def run(self) -> None:
        """Hand over what arrives, until cancelled."""
        while True:
            deliveries = await self._consumer.take(self._most)
            async with self._one_at_a_time:
                await self._handle(deliveries)

    async def keep_up(self) -> None:
        """Fill gaps, and look now and then whether a quiet partition has missed something.

        Each partition has a task of its own, so that none waits for another one's long history.
        """
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._gap.clear()
                    for followed in self._followed.values():
                        if followed.is_due(monotonic()):
                            followed.reading = True
                            group.create_task(self._catch_up(followed))
                    await _wait(self._gap, FIRST_CHECK_S)
        except BaseExceptionGroup as failures:
            raise first_cause(failures)  # noqa: B904 - it keeps its own cause

    async def _handle(self, deliveries: Sequence[Delivery]) -> None:
        began = monotonic()
        done, events = await self._place(deliveries)
        touched = [self._followed[number] for number in {event.partition for event in events}]
        await self._apply(events, touched)
        await self._consumer.settle(done)
        for followed in touched:
            await self._release(followed)
        partitions = sorted(followed.partition for followed in touched)
        self._handler.on_batch(len(deliveries), len(events), partitions, monotonic() - began)

    async def _place(
        self, deliveries: Sequence[Delivery]
    ) -> tuple[list[Delivery], list[CloudEvent]]:
        """Tell *seen*, *next* and *gap* apart; return what is done with, and what to apply."""
        done: list[Delivery] = []
        events: list[CloudEvent] = []
        now = monotonic()
        for delivery in deliveries:
            event = await self._decode(delivery)
            if event is None:
                done.append(delivery)
                continue
            followed = self._followed.get(event.partition)
            if followed is None:
                continue  # handed over meanwhile: it goes back with its queue
            place = followed.track.place(event.position)
            if place is Arrival.GAP:
                self._hold(followed, event.position, delivery)
                continue
            followed.busy_at = now
            done.append(delivery)
            if place is Arrival.NEXT:
                events.append(event)
        return done, events

    async def _apply(self, events: Sequence[CloudEvent], touched: Sequence[Followed]) -> None:
        if events:
            await self._handler.apply(events)
        for followed in touched:
            followed.track.applied()

    def _hold(self, followed: Followed, position: int, delivery: Delivery) -> None:
        if followed.leaving:
            self._consumer.let_go([delivery])
            return
        track = followed.track
        if not track.held:
            log.info(
                "gap.found",
                partition=followed.partition,
                checkpoint=track.position,
                position=position,
            )
        track.held[position] = delivery
        self._gap.set()

    async def _decode(self, delivery: Delivery) -> CloudEvent | None:
        """Read an event; what is none is set aside, and loses its place to nobody."""
        if (fault := too_large(delivery.message.body, LARGEST_EVENT)) is not None:
            await self._handler.set_aside(delivery, [Detail(field="body", message=fault)])
            return None
        try:
            event = CloudEvent.model_validate_json(delivery.message.body)
        except ValidationError as error:
            await self._handler.set_aside(delivery, details_of(error))
            return None
        if not self._belongs(delivery, event):
            wrong = Detail(field="partition", message="is of another queue")
            await self._handler.set_aside(delivery, [wrong])
            return None
        return event

    def _belongs(self, delivery: Delivery, event: CloudEvent) -> bool:
        """Whether it may come from that queue: a partition's own, or one for all of them."""
        lease = delivery.source.lease
        return event.partition == lease.partition if lease else event.partition in self._followed

    async def _catch_up(self, followed: Followed) -> None:
        """Read on from the position in the log, until what is held follows or nothing is left."""
        try:
            while await self._read_in_turn(followed):
                pass
        except NoAnswer as error:
            log.warning("log.unanswered", partition=followed.partition, reason=reason_of(error))
            await asyncio.sleep(RETRY_S)
        finally:
            followed.reading = False
            if followed.track.held:
                self._gap.set()

    async def _read_in_turn(self, followed: Followed) -> bool:
        """Apply one page, then let others go first; whether there may be more to read."""
        async with self._reading:
            return await self._read_on(followed)

    async def _read_on(self, followed: Followed) -> bool:
        """Apply one page of the log; whether there may be more to read."""
        partition, track = followed.partition, followed.track
        held = list(track.held)
        page = await self._log.read(partition, track.position)
        async with self._one_at_a_time:
            if followed.leaving or self._followed.get(partition) is not followed:
                return False
            followed.busy_at = monotonic()
            following = [
                event for event in page.events if track.place(event.position) is Arrival.NEXT
            ]
            await self._apply(following, [followed])
            self._handler.on_log_page(len(following))
            if following:
                log.info(
                    "log.read", partition=partition, events=len(following), position=track.position
                )
            await self._set_aside_beyond(track, held, page.head)
            await self._release(followed)
        return bool(following) and (bool(track.held) or track.position < page.head)

    async def _set_aside_beyond(
        self, track: PositionTracker[Delivery], held: Sequence[int], head: int
    ) -> None:
        """Set aside what claims a position that the log had not reached when it was asked later.

        An event is published after its commit, so nothing genuine is held before the log has it;
        waiting for it would ask the log without end.
        """
        for delivery in track.take_beyond(head, held):
            wrong = Detail(field="position", message="is not in the log")
            await self._handler.set_aside(delivery, [wrong])
            await self._consumer.settle([delivery])

    async def _release(self, followed: Followed) -> None:
        """Handle again what was held, once what it waited for is there."""
        released = followed.track.release()
        if released:
            await self._handle(released)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
