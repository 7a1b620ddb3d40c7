"""Publishes the log, in order: the log is the outbox, and a cursor follows the confirms."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

import structlog

from command_service import metrics
from command_service.event_store import EventStore
from command_service.recorded_event import RecordedEvent
from shared import tracing
from shared.broker import PUBLISH_WINDOW, Channel, publish_in_order
from shared.errors import Fenced
from shared.leases import Lease
from shared.metrics import LAST_PROGRESS

MOST_IN_MEMORY: Final = 5_000
"""Events kept for a partition whose publishing lags; past that they are read from the log."""
MARK_EVERY_S: Final = 0.5
"""How often the database is told what the broker has confirmed; what it was not told goes out
again after a death."""

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class Outbox:
    """The part of one partition's log that the broker has not confirmed yet."""

    lease: Lease
    published: int
    head: int
    fresh: deque[RecordedEvent] = field(default_factory=deque)
    """Just appended, to spare reading them back; always a run that ends at the head."""
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, event: RecordedEvent) -> None:
        """Note an event that was just appended."""
        self.head = event.position
        if len(self.fresh) >= MOST_IN_MEMORY:
            self.fresh.clear()
        self.fresh.append(event)
        self.empty.clear()

    def confirm(self, position: int) -> None:
        """Note that the broker has everything up to this position."""
        self.published = position
        while self.fresh and self.fresh[0].position <= position:
            self.fresh.popleft()
        if self.published >= self.head:
            self.empty.set()

    def give_up(self) -> None:
        """Wait no more for what the log should have, and hasn't."""
        self.head = self.published
        self.empty.set()


class Publisher:
    """Publishes what the log has and the exchange hasn't, over all partitions owned."""

    def __init__(
        self, channel: Channel, store: EventStore, may_publish: Callable[[], bool]
    ) -> None:
        self._channel = channel
        self._store = store
        self._may_publish = may_publish
        self._outboxes: dict[int, Outbox] = {}
        self._wake = asyncio.Event()
        self._marked: dict[int, int] = {}

    async def open(self, lease: Lease) -> None:
        """Begin with whatever the last owner had not confirmed."""
        head = await self._store.read_head(lease.partition)
        outbox = Outbox(lease, head.published_position, head.position)
        outbox.confirm(head.published_position)
        self._outboxes[lease.partition] = outbox
        self._marked[lease.partition] = head.published_position
        self._wake.set()

    def add(self, events: Iterable[RecordedEvent]) -> None:
        """Publish these as well; they were just appended, in this order."""
        for event in events:
            self._outboxes[event.partition].add(event)
        self._wake.set()

    async def close(self, partition: int) -> None:
        """Return when the broker has the whole log of a partition, and that is remembered."""
        await self._outboxes[partition].empty.wait()
        await self._mark()
        del self._outboxes[partition]

    async def run(self) -> None:
        """Publish until cancelled; raises what the broker raises when it does not confirm."""
        while True:
            window = await self._next_window()
            if window:
                await self._publish(window)
            else:
                await self._wait()

    async def keep_marking(self) -> None:
        """Remember now and then what the broker has confirmed, until cancelled."""
        while True:
            await asyncio.sleep(MARK_EVERY_S)
            await self._mark()

    async def _wait(self) -> None:
        self._wake.clear()
        if any(not box.empty.is_set() for box in self._outboxes.values()):
            return
        await self._wake.wait()

    async def _next_window(self) -> list[RecordedEvent]:
        """Collect the next events, a window's worth at most, shared fairly by the partitions."""
        waiting = [box for box in self._outboxes.values() if not box.empty.is_set()]
        share = max(1, PUBLISH_WINDOW // max(1, len(waiting)))
        following = [await self._following(box, share) for box in waiting]
        return [event for events in following for event in events]

    async def _following(self, box: Outbox, most: int) -> list[RecordedEvent]:
        if box.fresh and box.fresh[0].position == box.published + 1:
            return [event for event, _ in zip(box.fresh, range(most), strict=False)]
        page = await self._store.read_log(box.lease.partition, box.published, most)
        if not page:  # to ask again would bring nothing else, and hold up the other partitions
            log.error(
                "log.ends_early",
                partition=box.lease.partition,
                position=box.published,
                head=box.head,
                remedy="restore the whole event store from one moment",
            )
            box.give_up()
        return page

    async def _publish(self, window: list[RecordedEvent]) -> None:
        if not self._may_publish():
            raise Fenced("the leases ended before the events were published")
        began = monotonic()
        with tracing.span(tracing.PUBLISH, window):
            await publish_in_order(self._channel, [event.message() for event in window])
        metrics.EVENTS_PUBLISHED.inc(len(window))
        LAST_PROGRESS.labels("publish").set_to_current_time()
        for event in window:
            self._outboxes[event.partition].confirm(event.position)
        log.info(
            "batch.published",
            partitions=sorted({event.partition for event in window}),
            events=len(window),
            milliseconds=round((monotonic() - began) * 1000, 1),
        )

    async def _mark(self) -> None:
        moved = {
            number: box.published
            for number, box in self._outboxes.items()
            if box.published > self._marked[number]
        }
        if moved:
            epochs = {number: self._outboxes[number].lease.epoch for number in moved}
            await self._store.mark_published(moved, epochs)
            self._marked |= moved
