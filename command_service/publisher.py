"""Publishes the log, in order: the log is the outbox, and a cursor follows the confirms.

An exchange confirms an event once all queues bound to it have it; a single one that is full and
says so makes it refuse the event to us, and never tells whose queue that was. So a refused event
goes to the projection's queue by itself, and after another try or two publishing goes on: the
others have it already, and whose queue refused it finds it in the log.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from time import monotonic
from typing import Final
from uuid import UUID

import structlog

from command_service import metrics
from command_service.insistence import insistences
from command_service.log_identity.witness import Witness
from command_service.store.event_store import EventStore
from command_service.store.recorded_event import RecordedEvent
from shared.errors import Fenced
from shared.event_log.set_back import FIRST_GENERATION, LogPlace
from shared.messages import names
from shared.rabbitmq.publishing import PUBLISH_WINDOW, Outgoing, Outlet, Why, Window
from shared.telemetry import tracing
from shared.telemetry.batch_lines import BatchLines
from shared.telemetry.metrics import last_progress
from shared.telemetry.readiness import Readiness
from shared.values.partition import Lease

MOST_IN_MEMORY: Final = 5_000
"""Events kept for a partition whose publishing lags; past that they are read from the log."""
MARK_EVERY_S: Final = 0.5
"""How often the database is told what the broker has confirmed, where no append tells it along;
what it was not told goes out again after a death."""
MARK_AFTER: Final = 500
"""Events; so many are told of sooner, lest a backlog that was just published go out once more."""
CONFIRMED_WITHIN_S: Final = 5.0
"""A queue that has lost its majority lets a publisher wait without end."""
LAST_WORDS_S: Final = 1.0
RETRY_S: Final = 1.0
SAY_AGAIN_S: Final = 60.0
PUBLISHING: Final = "publishing"
EXCHANGE: Final = "the exchange of events"
"""Under what the readiness keeps what is wrong with either."""

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class Outbox:
    """The part of one partition's log that the broker has not confirmed yet."""

    lease: Lease
    published: int
    """Up to here the projection's queue has everything."""
    offered: int
    """Up to here everything was published to the exchange, once; it may have refused some."""
    head: int
    fresh: deque[RecordedEvent] = field(default_factory=deque)
    """Just appended, to spare reading them back; always a run that ends at the head."""
    generation: int = FIRST_GENERATION
    """Of the log, of what is appended now."""
    newest: RecordedEvent | None = None
    """The last event that this owner has appended, or published."""
    free: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nobody need wait for it: all is published to the exchange, or nothing can be."""

    @property
    def waits(self) -> bool:
        """Whether something has not been published to the exchange."""
        return self.offered < self.head

    def next_fresh(self, most: int) -> list[RecordedEvent]:
        """Return what is to be published next; nothing where it must be read from the log."""
        if not self.fresh or self.fresh[0].position != self.offered + 1:
            return []
        return list(islice(self.fresh, most))

    @property
    def owes(self) -> bool:
        """Whether the projection's queue has refused something."""
        return self.published < self.offered

    def add(self, event: RecordedEvent) -> None:
        """Note an event that was just appended."""
        self.head = event.position
        self.newest = event
        if len(self.fresh) >= MOST_IN_MEMORY:
            self.fresh.clear()
        self.fresh.append(event)
        self.free.clear()

    def offer(self, position: int, refused_at: int | None = None) -> int:
        """Note that everything up to this position was published, and what of it was refused.

        Returns by how many events the confirmed part has grown.
        """
        before = self.published
        if not self.owes:
            self.published = position if refused_at is None else refused_at - 1
        self.offered = position
        while self.fresh and self.fresh[0].position <= position:
            self.fresh.popleft()
        if not self.waits:
            self.free.set()
        return self.published - before

    def give_up(self) -> None:
        """Wait no more for what the log should have, and hasn't."""
        self.head = self.offered
        self.free.set()

    def repay(self, position: int) -> int:
        """Note how far its projection's queue has everything; returns by how many events more."""
        before, self.published = self.published, position
        return position - before


Following = list[tuple[Outbox, list[RecordedEvent]]]
"""What is published at once: some events of each partition."""


class _Refusals:
    """Counts what was refused, and says so now and then."""

    def __init__(self) -> None:
        self._said_at = -SAY_AGAIN_S
        self._unsaid = 0

    def note(self, refused: Mapping[RecordedEvent, Why], owed: Mapping[RecordedEvent, Why]) -> None:
        """Note what the exchange refused, and what of it the projection's queues refused too."""
        if not refused:
            return
        for why, count in Counter(refused.values()).items():
            metrics.EVENTS_REFUSED.labels(why).inc(count)
        self._unsaid += len(refused)
        if monotonic() - self._said_at < SAY_AGAIN_S:
            return
        guilty = {names.projection_queue(event.partition) for event in owed}
        log.warning(
            "events.refused",
            events=self._unsaid,
            partitions=sorted({event.partition for event in refused}),
            why=sorted(set(refused.values())),
            queues=sorted(guilty) or f"one bound to {names.EVENTS}: `check --management` names it",
        )
        self._said_at, self._unsaid = monotonic(), 0


class Publisher:
    """Publishes what the log has and the exchange hasn't, over all partitions owned."""

    def __init__(
        self,
        exchange: Outlet,
        straight: Outlet,
        store: EventStore,
        may_publish: Callable[[], bool],
        readiness: Readiness,
        witness: Witness,
    ) -> None:
        """What was refused on the one way goes to its queue on the other."""
        self.lines = BatchLines("batch.published")
        self._witness = witness
        self._log_id: UUID | None = None
        self._testified: dict[int, int] = {}
        self._exchange = exchange
        self._straight = straight
        self._store = store
        self._may_publish = may_publish
        self._readiness = readiness
        self._refusals = _Refusals()
        self._insistences = insistences()
        self._outboxes: dict[int, Outbox] = {}
        self._wake = asyncio.Event()
        self._is_waiting = False
        self._begun: tuple[Following, Window] | None = None
        self._many_unmarked = asyncio.Event()

    async def open(self, lease: Lease) -> None:
        """Begin with whatever the last owner had not confirmed."""
        head = await self._store.open(lease.partition)
        self._log_id = head.log_id
        self._testified.pop(lease.partition, None)
        outbox = Outbox(lease, head.published_position, head.published_position, head.position)
        outbox.offer(head.published_position)
        outbox.generation = head.generation or FIRST_GENERATION
        self._outboxes[lease.partition] = outbox
        self._wake.set()

    def add(self, events: Iterable[RecordedEvent]) -> None:
        """Publish these as well; they were just appended, in this order."""
        for event in events:
            self._outboxes[event.partition].add(event)
        self._wake.set()

    async def close(self, partition: int) -> None:
        """Return when the whole log of a partition is published, and that is remembered.

        What can't be published now, or its projection's queue refuses, is left to the next owner.
        """
        await self._outboxes[partition].free.wait()
        await self._mark()
        del self._outboxes[partition]

    def begin(self) -> None:
        """Write what was just added now, where nothing is under way; `run` goes on with it.

        So events leave in one write with the replies of their batch, and no task is woken first.
        """
        if not self._is_waiting or self._begun or not self._may_publish():
            return
        following = [(box, box.next_fresh(share)) for box, share in self._waiting()]
        if not following or not all(events for _, events in following):
            return
        messages = [event.message() for _, events in following for event in events]
        if window := self._exchange.begin(messages):
            self._begun = following, window

    async def run(self) -> None:
        """Publish until cancelled; raises what ends the channel."""
        while True:
            if self._begun:
                (following, begun), self._begun = self._begun, None
                await self._publish(following, begun)
            elif following := await self._next_window():
                await self._publish(following)
            else:
                await self._wait()

    async def keep_marking(self) -> None:
        """Remember now and then what the broker has confirmed, until cancelled."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(MARK_EVERY_S):
                        await self._many_unmarked.wait()
                await self._mark()
        finally:  # a database that is lost may come back without the last events
            with suppress(Exception):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._testify()

    async def keep_repaying(self) -> None:
        """Try again, now and then, what the projection's queues refused, until cancelled."""
        try:
            while True:
                await asyncio.sleep(RETRY_S)
                for box in list(self._outboxes.values()):
                    await self._repay(box)
                self._tell_owing()
        finally:
            self._readiness.report(PUBLISHING)
            self._readiness.report(EXCHANGE)

    async def _wait(self) -> None:
        self._wake.clear()
        if any(box.waits for box in self._outboxes.values()):
            return
        self._is_waiting = True
        try:
            await self._wake.wait()
        finally:
            self._is_waiting = False

    async def _next_window(self) -> Following:
        """Collect the next events, a window's worth at most, shared fairly by the partitions."""
        following = [(box, await self._following(box, share)) for box, share in self._waiting()]
        return [(box, events) for box, events in following if events]

    def _waiting(self) -> list[tuple[Outbox, int]]:
        """List who has something to publish, and how much of it a window takes."""
        waiting = [box for box in self._outboxes.values() if box.waits]
        share = max(1, PUBLISH_WINDOW // max(1, len(waiting)))
        return [(box, share) for box in waiting]

    async def _following(self, box: Outbox, most: int) -> list[RecordedEvent]:
        if fresh := box.next_fresh(most):
            return fresh
        page = await self._store.read_log(box.lease.partition, box.offered, most)
        if not page:  # to ask again would bring nothing else, and hold up the other partitions
            log.error(
                "log.ends_early",
                partition=box.lease.partition,
                position=box.offered,
                head=box.head,
                remedy="restore the whole event store from one moment",
            )
            box.give_up()
        return page

    async def _publish(self, window: Following, begun: Window | None = None) -> None:
        """Publish to the exchange, and what that refuses to the projection's queues."""
        began = monotonic()
        events = [event for _, following in window for event in following]
        with tracing.span(tracing.PUBLISH, events):
            refused = await self._send(self._exchange, events, RecordedEvent.message, begun)
            if Why.NO_EXCHANGE in refused.values():
                await self._wait_for_exchange()
                return
            owed = await self._send(self._straight, list(refused), _straight)
            self._refusals.note(refused, owed)
            await self._insist(events, refused)
        for box, following in window:
            number = box.lease.partition
            first = next((event.position for event in owed if event.partition == number), None)
            self._note_published(box, box.offer(following[-1].position, first))
            if box.newest is None or box.newest.position < following[-1].position:
                box.newest = following[-1]
        if self._store.unmarked >= MARK_AFTER:
            self._many_unmarked.set()
        self._readiness.report(EXCHANGE)
        last_progress("publish").set_to_current_time()
        self.lines.note(
            (box.lease.partition for box, _ in window), monotonic() - began, events=len(events)
        )

    async def _insist(
        self, events: Sequence[RecordedEvent], refused: Mapping[RecordedEvent, Why]
    ) -> None:
        """Offer the exchange what it refused once more, in case it was a queue without a leader."""
        began = monotonic()
        why = Why.UNANSWERED if Why.UNANSWERED in refused.values() else Why.REFUSED
        insistence = self._insistences[why]
        if why in refused.values() and insistence.is_due():
            was_taken = await self._offer_again(events, refused, insistence.pauses_s)
            insistence.rest(began, in_vain=not was_taken)

    async def _offer_again(
        self,
        events: Sequence[RecordedEvent],
        refused: Mapping[RecordedEvent, Why],
        pauses: Sequence[float],
    ) -> bool:
        """Tell whether everything was taken in the end.

        In order, and the first alone until it is taken, since the others have it already.
        """
        for pause in pauses:
            await asyncio.sleep(pause)
            first = next(number for number, event in enumerate(events) if event in refused)
            for some in (events[first : first + 1], events[first + 1 :]):
                refused = await self._send(self._exchange, some, RecordedEvent.message)
                if refused:
                    break
            else:
                return True
        return False

    async def _wait_for_exchange(self) -> None:
        """Pause: what nobody can be told of is not passed over, and keeps nobody from leaving."""
        self._readiness.report(EXCHANGE, "topology", f"the exchange {names.EVENTS} is missing")
        for box in self._outboxes.values():
            box.free.set()
        await asyncio.sleep(RETRY_S)

    async def _send(
        self,
        outlet: Outlet,
        events: Sequence[RecordedEvent],
        message: Callable[[RecordedEvent], Outgoing],
        begun: Window | None = None,
    ) -> dict[RecordedEvent, Why]:
        """Publish events as such messages; return those that were refused, and why."""
        if not self._may_publish():
            raise Fenced("the leases ended before the events were published")
        messages = begun.messages if begun else [message(event) for event in events]
        refused = await outlet.publish(messages, within=CONFIRMED_WITHIN_S, begun=begun)
        if not refused:
            return {}
        why = {refusal.message.properties.message_id: refusal.why for refusal in refused}
        return {event: why[id_] for event in events if (id_ := str(event.event_id)) in why}

    async def _repay(self, box: Outbox) -> None:
        """Send what a projection's queue refused to it again, as far as it takes it."""
        number, most = box.lease.partition, 1  # one that still refuses is bothered with one event
        while box.owes and self._outboxes.get(number) is box:
            events = await self._store.read_log(
                number, box.published, min(most, box.offered - box.published)
            )
            owed = await self._send(self._straight, events, _straight)
            first = next(iter(owed), None)
            reached = first.position - 1 if first else events[-1].position
            self._note_published(box, box.repay(reached))
            if first:
                return
            most = PUBLISH_WINDOW

    def _tell_owing(self) -> None:
        """Have the readiness name the queues of the projection that refuse."""
        owing = [number for number, box in self._outboxes.items() if box.owes]
        if owing:
            queues = ", ".join(map(names.projection_queue, sorted(owing)))
            self._readiness.report(PUBLISHING, "projection_queue", f"full or missing: {queues}")
        else:
            self._readiness.report(PUBLISHING)

    async def _testify(self) -> None:
        """Have the broker remember how far the logs are, so that one that lost that is noticed."""
        newest = {
            number: box.newest
            for number, box in self._outboxes.items()
            if box.newest and box.newest.position > self._testified.get(number, 0)
        }
        if newest and self._log_id:
            places = {number: self._place(event) for number, event in newest.items()}
            if await self._witness.write(places, self._log_id):
                self._testified |= {n: place.position for n, place in places.items()}

    def _place(self, event: RecordedEvent) -> LogPlace:
        generation = self._outboxes[event.partition].generation
        return LogPlace(event.position, str(event.event_id), generation)

    def _note_published(self, box: Outbox, more: int) -> None:
        """Note that the broker has so many events more of a partition."""
        metrics.EVENTS_PUBLISHED.inc(more)
        if self._outboxes.get(box.lease.partition) is box:  # it may have left meanwhile
            self._store.note_published(box.lease.partition, box.published)

    async def _mark(self) -> None:
        self._many_unmarked.clear()
        await self._testify()
        owned = {number: box.lease.epoch for number, box in self._outboxes.items()}
        await self._store.mark_published(owned)


def _straight(event: RecordedEvent) -> Outgoing:
    """Make an event's message for the projection's queue alone."""
    return replace(
        event.message(), exchange="", routing_key=names.projection_queue(event.partition)
    )
