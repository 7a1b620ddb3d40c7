"""Follows the logs of some partitions: arrivals in order, and what is missing from the log."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Final, Protocol

import structlog
from pydantic import ValidationError

from shared.errors import Fenced, NoAnswer, RowLocked, first_cause
from shared.errors.text import reason_of
from shared.event_log.log_client import LogClient, Page
from shared.event_log.position_tracker import Arrival, PositionTracker
from shared.event_log.set_back import (
    FIRST_GENERATION,
    LogPlace,
    SetBack,
    generation_at,
    newest_generation,
    place_of,
)
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import GenerationBegan
from shared.messages.replies import Detail
from shared.messages.validation import details_of
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.values.oversized import LARGEST_EVENT, too_large

HEAD_CHECK_S: Final = 5.0
"""After so long a silence the log is asked whether something has been missed."""
FIRST_CHECK_S: Final = 0.5
RETRY_S: Final = 0.5
COMPARED_WITHIN_S: Final = 3.0
"""For so long what arrives waits to be compared with the log. Where nobody answers it is taken as
it is: a log that was set back can't go on without a worker, who would answer."""
READ_AT_ONCE: Final = 3
"""Partitions whose log is read side by side: pages are on their way while others are applied."""

log = structlog.get_logger()


class EventHandler(Protocol):
    """What events are followed for."""

    async def apply(self, events: Sequence[CloudEvent]) -> None:
        """Apply events that follow what was applied before, in order for each partition.

        None of them comes again once it returns. Where it raises RowLocked they come again, each
        partition apart from the others; whatever else it raises ends the following. It is never
        called while it is at work, unless it was asked for side by side: then for other
        partitions.
        """

    async def set_aside(self, delivery: Delivery, details: Sequence[Detail]) -> None:
        """Keep a delivery that is no event of the log; it is settled afterwards."""

    async def on_compared(self, partition: int, found: SetBack | None) -> None:
        """Note what comparing with the log found, at the beginning and whenever that changes.

        Where the log was set back nothing of the partition is applied any more, until it is opened
        anew; None where the log has all that was applied.
        """

    def on_batch(
        self, deliveries: int, events: int, partitions: Sequence[int], seconds: float
    ) -> None:
        """Note that so many deliveries were handled, and the new events among them."""

    def on_log_page(self, events: int) -> None:
        """Note that so many events came from the log."""


@dataclass(eq=False, frozen=True, slots=True)
class Arrived:
    """An event, and how it came."""

    delivery: Delivery
    event: CloudEvent


@dataclass(eq=False, slots=True)
class Followed:
    """One partition that is followed."""

    partition: int
    track: PositionTracker[Delivery]
    lock: asyncio.Lock
    """Held by whoever places and applies what is of this partition."""
    busy_at: float
    """When something last arrived."""
    leaving: bool = False
    """Whether it is being handed over: nothing is held any more, nor read from the log."""
    reading: bool = False
    """Whether its log is being read."""
    trusted: bool = False
    """Whether what arrives may be taken: the log has what was taken before, as far as is known."""
    doubted: list[Arrived] = field(default_factory=list)
    """What arrived since it is not trusted, in order."""
    is_locked: bool = False
    """Whether the last time a row was locked: then its own task applies it, and nobody else."""
    behind: list[Delivery] = field(default_factory=list)
    """What arrived meanwhile, in order."""
    generations: Sequence[GenerationBegan] | None = None
    """As the log told them; None where it was not asked yet."""
    compared_at: float = -inf
    compared: bool = False
    """Whether the handler was told what comparing found."""
    set_back: SetBack | None = None

    def is_behind(self, now: float) -> bool:
        """Whether the log must be asked what follows."""
        quiet = now - self.busy_at > HEAD_CHECK_S and not self.track.starts_at_first
        return bool(self.track.held) or quiet

    def is_due(self, now: float) -> bool:
        """Whether the log must be asked what follows, or whether it has what was taken."""
        if self.leaving or self.reading:
            return False
        if self.is_locked or (not self.trusted and self.set_back is None):
            return True
        return now - self.compared_at > HEAD_CHECK_S or (
            self.set_back is None and self.is_behind(now)
        )

    def belongs(self, event: CloudEvent) -> bool | None:
        """Whether it is of this log by its generation; None where only the log can tell."""
        if self.generations is None:
            return True
        generation = event.generation or FIRST_GENERATION
        if generation > newest_generation(self.generations):
            return None
        return generation == generation_at(self.generations, event.position)


class Follower:
    """Hands each event of the partitions it follows to a handler, once and in order.

    What was taken is compared with the log: at the beginning, with each page, whenever something
    arrives that was seen already or is of another generation, and every few seconds. Until that is
    done nothing further is taken; where the log was set back, nothing at all.

    An event is *seen*, *next*, or behind a *gap*. What is behind a gap is held, unsettled, while
    the log is read from where the gap begins; a partition where nothing arrives has its log read
    now and then, so that nothing lost goes unnoticed.
    """

    def __init__(
        self,
        consumer: Consumer,
        log_client: LogClient,
        handler: EventHandler,
        *,
        most: int,
        side_by_side: bool = False,
        heeds_disputes: bool = False,
    ) -> None:
        """Hand over at most `most` events at a time; `side_by_side`, those of several partitions.

        The handler is then called while it is at work for others, which needs a queue for each.
        Who `heeds_disputes` takes nothing either from a log that lacks what was published of it,
        though all is there that was taken: the handler may have been set back with the log.
        """
        self._heeds_disputes = heeds_disputes
        self._consumer = consumer
        self._log = log_client
        self._handler = handler
        self._most = most
        self._followed: dict[int, Followed] = {}
        self._alone = None if side_by_side else asyncio.Lock()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._at_lock = asyncio.Lock()
        """One partition waits at a time: who waits for a lock takes up a connection."""
        self._gap = asyncio.Event()

    def open(self, partition: int, track: PositionTracker[Delivery]) -> None:
        """Begin with a partition, with what follows its track's position."""
        due = monotonic() - HEAD_CHECK_S + FIRST_CHECK_S
        lock = self._alone or asyncio.Lock()
        self._followed[partition] = Followed(partition, track, lock, busy_at=due)
        self._gap.set()

    def position(self, partition: int) -> int:
        """Return the position up to which everything is applied."""
        return self._followed[partition].track.position

    def taken(self, partition: int) -> LogPlace:
        """Return the last event that is applied."""
        return self._followed[partition].track.taken

    def let_go(self, partition: int) -> None:
        """Wait for no gap any more: what is held goes back when its queue is closed."""
        followed = self._followed[partition]
        self._let_go_of_all(followed)
        followed.leaving = True

    def _let_go_of_all(self, followed: Followed) -> None:
        """Have what waits go back when its queue is closed, whatever it waits for."""
        doubted = [one.delivery for one in followed.doubted]
        self._consumer.let_go([*followed.track.held.values(), *doubted, *followed.behind])
        followed.track.held.clear()
        followed.doubted.clear()
        followed.behind.clear()

    async def close(self, partition: int) -> None:
        """Stop with a partition that was let go, once nothing of it is being applied."""
        async with self._followed[partition].lock:
            del self._followed[partition]

    async def run(self) -> None:
        """Hand over what arrives, until cancelled."""
        while True:
            deliveries = self._put_by(await self._consumer.take(self._most, paced=True))
            async with AsyncExitStack() as held:
                for lock in self._locks(deliveries):
                    await held.enter_async_context(lock)
                await self._handle(deliveries)

    def _put_by(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Leave to its own task what is of a partition that waits for a lock; return the others."""
        waiting = {number: one for number, one in self._followed.items() if one.is_locked}
        if not waiting:
            return deliveries
        for delivery in deliveries:
            if delivery.partition in waiting:
                waiting[delivery.partition].behind.append(delivery)
        return [delivery for delivery in deliveries if delivery.partition not in waiting]

    def _locks(self, deliveries: Sequence[Delivery]) -> set[asyncio.Lock]:
        """Tell what to hold meanwhile; only here does anybody wait for more than one lock."""
        numbers = {delivery.partition for delivery in deliveries}
        return {
            followed.lock
            for number, followed in self._followed.items()
            if number in numbers or None in numbers
        }

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
                            group.create_task(self._look(followed))
                    await _wait(self._gap, FIRST_CHECK_S)
        except BaseExceptionGroup as failures:
            raise first_cause(failures)  # noqa: B904 - it keeps its own cause

    async def _handle(self, deliveries: Sequence[Delivery]) -> None:
        arrived: list[Arrived] = []
        done: list[Delivery] = []
        for delivery in deliveries:
            event = await self._decode(delivery)
            if event is None:
                done.append(delivery)
            else:
                arrived.append(Arrived(delivery, event))
        await self._take(arrived, done)

    async def _take(
        self, arrived: Sequence[Arrived], done: list[Delivery], *, certain: bool = False
    ) -> None:
        """Apply what is next, and settle what is done with; `certain` where the log was asked."""
        began, deliveries = monotonic(), len(arrived) + len(done)
        if not deliveries:
            return
        events = self._place(arrived, done, certain=certain)
        touched = [self._followed[number] for number in {event.partition for event in events}]
        if not await self._apply(events, touched):
            await self._consumer.settle(self._take_back(arrived, done, touched))
            return
        await self._consumer.settle(done)
        for followed in touched:
            await self._release(followed)
        partitions = sorted(followed.partition for followed in touched)
        self._handler.on_batch(deliveries, len(events), partitions, monotonic() - began)

    def _place(
        self, arrived: Sequence[Arrived], done: list[Delivery], *, certain: bool
    ) -> list[CloudEvent]:
        """Tell *seen*, *next* and *gap* apart; return what to apply, and add what is done with."""
        events: list[CloudEvent] = []
        now = monotonic()
        for one in arrived:
            followed = self._followed.get(one.event.partition)
            if followed is None:
                continue  # handed over meanwhile: it goes back with its queue
            if followed.set_back is not None:
                self._consumer.let_go([one.delivery])
                continue
            belongs = followed.belongs(one.event)
            if not followed.trusted or (belongs is None and not certain):
                self._doubt(followed, one)
                continue
            if not belongs:
                _tell_stray(one.event)
                done.append(one.delivery)
                continue
            place = followed.track.place(one.event.position)
            if place is Arrival.SEEN and not certain:
                self._doubt(followed, one)
                continue
            if place is Arrival.GAP:
                self._hold(followed, one.event.position, one.delivery)
                continue
            followed.busy_at = now
            done.append(one.delivery)
            if place is Arrival.NEXT:
                events.append(one.event)
        return events

    def _doubt(self, followed: Followed, one: Arrived) -> None:
        """Take nothing more of a partition until its log was asked whether that is right."""
        if followed.leaving:
            self._consumer.let_go([one.delivery])
            return
        followed.trusted = False
        followed.doubted.append(one)
        self._gap.set()

    async def _apply(self, events: Sequence[CloudEvent], touched: Sequence[Followed]) -> bool:
        """Have events applied; where a row is locked none is, and each partition waits apart."""
        try:
            if events:
                await self._handler.apply(events)
        except RowLocked:
            for followed in touched:
                followed.track.take_back()
                followed.is_locked, followed.trusted = True, False
            self._gap.set()
            return False
        last = {event.partition: event for event in events}
        for followed in touched:
            if event := last.get(followed.partition):
                place = place_of(event)
                followed.track.applied(place.event_id, place.generation)
        return True

    def _take_back(
        self, arrived: Sequence[Arrived], done: Sequence[Delivery], touched: Sequence[Followed]
    ) -> list[Delivery]:
        """Keep for later what could not be applied; return what is done with all the same."""
        later = {
            id(one.delivery): (followed, one)
            for followed in touched
            for one in arrived
            if one.event.partition == followed.partition
        }
        for delivery in done:
            if id(delivery) in later:
                self._doubt(*later[id(delivery)])
        return [delivery for delivery in done if id(delivery) not in later]

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

    async def _look(self, followed: Followed) -> None:
        """Compare what was taken with the log, or read on in it."""
        try:
            if followed.is_locked:
                await self._try_again(followed)
            elif followed.trusted and followed.set_back is None and followed.is_behind(monotonic()):
                while await self._read_in_turn(followed):
                    pass
            else:
                await self._compare(followed)
        except NoAnswer as error:
            log.warning("log.unanswered", partition=followed.partition, reason=reason_of(error))
            await asyncio.sleep(RETRY_S)
        finally:
            followed.reading = False
            if followed.track.held or not followed.trusted:
                self._gap.set()

    async def _try_again(self, followed: Followed) -> None:
        """Apply what was kept back by a lock, then what came behind it."""
        async with self._at_lock:
            await self._compare(followed)
            if followed.trusted:
                await self._read_on(followed)
        async with followed.lock:
            while followed.behind and followed.trusted:
                behind, followed.behind = followed.behind, []
                await self._handle(behind)
            followed.is_locked = not followed.trusted and followed.set_back is None

    async def _compare(self, followed: Followed) -> None:
        """Ask for the event at the position; then take what waited for that."""
        taken, doubted = followed.track.taken, list(followed.doubted)
        page = await self._ask(followed.partition, max(0, taken.position - 1))
        async with followed.lock:
            if followed.leaving or self._followed.get(followed.partition) is not followed:
                return
            followed.compared_at = monotonic()
            if page and await self._differs(followed, taken, page):
                return
            waited, followed.doubted = followed.doubted, []
            followed.trusted = True
            beyond = [one for one in doubted if page and one.event.position > page.head]
            for one in beyond:
                await self._set_aside_unknown(one.delivery)
            within = [one for one in doubted if one not in beyond]
            await self._take(within, [], certain=True)
            if later := waited[len(doubted) :]:  # it arrived after the log was asked
                await self._take(later, [])

    async def _ask(self, partition: int, after_position: int) -> Page | None:
        try:
            async with asyncio.timeout(COMPARED_WITHIN_S):
                return await self._log.read(partition, after_position, 1)
        except (TimeoutError, NoAnswer):
            log.warning("log.not_compared", partition=partition, reason="nobody answers")
            return None

    async def _differs(self, followed: Followed, taken: LogPlace, page: Page) -> bool:
        """Whether the log lacks what was taken; the handler is told when that changes."""
        track = followed.track
        found = None if track.starts_at_first else page.differs(followed.partition, taken)
        if found is None and page.disputed and self._heeds_disputes:
            found = SetBack(followed.partition, taken.position, page.head, parted_at=None)
        if found != followed.set_back or not followed.compared:
            followed.compared = True
            await self._handler.on_compared(followed.partition, found)
        if found is None and followed.set_back is not None:
            raise Fenced(f"partition {followed.partition}: its log has again what was taken")
        if found is not None:
            self._stop_taking(followed, found)
            return True
        followed.generations = page.generations
        if track.event_id is None and track.position == taken.position and page.events:
            first = page.events[0]
            if first.position == track.position:
                track.event_id, track.generation = first.id, first.generation or FIRST_GENERATION
        return False

    def _stop_taking(self, followed: Followed, found: SetBack) -> None:
        if followed.set_back is None:  # seldom does this happen to one partition alone
            for other in self._followed.values():
                if other is not followed and other.set_back is None:
                    other.compared_at = -inf
            self._gap.set()
        if followed.set_back is None or followed.set_back.parted_at != found.parted_at:
            log.error(
                "log.set_back",
                partition=found.partition,
                position=found.position,
                head=found.head,
                parted_at=found.parted_at,
            )
        followed.set_back = found
        self._let_go_of_all(followed)

    async def _read_in_turn(self, followed: Followed) -> bool:
        """Apply one page, then let others go first; whether there may be more to read."""
        async with self._reading:
            return await self._read_on(followed)

    async def _read_on(self, followed: Followed) -> bool:
        """Apply one page of the log; whether there may be more to read."""
        partition, track = followed.partition, followed.track
        held, taken = list(track.held), track.taken
        page = await self._page_after(partition, taken.position)
        async with followed.lock:
            if followed.leaving or self._followed.get(partition) is not followed:
                return False
            followed.busy_at = followed.compared_at = monotonic()
            if await self._differs(followed, taken, page):
                return False
            beyond = [event for event in page.events if event.position > taken.position]
            following = [event for event in beyond if track.place(event.position) is Arrival.NEXT]
            if not await self._apply(following, [followed]):
                return False
            self._handler.on_log_page(len(following))
            if following:
                log.info(
                    "log.read", partition=partition, events=len(following), position=track.position
                )
            await self._set_aside_beyond(track, held, page.head)
            await self._release(followed)
        return bool(following) and (bool(track.held) or track.position < page.head)

    async def _page_after(self, partition: int, position: int) -> Page:
        """Read what follows a position, and the event there, by which the log is known again."""
        page = await self._log.read(partition, max(0, position - 1))
        if page.head > position and page.events and page.events[-1].position == position:
            following = await self._log.read(partition, position)
            page.events += following.events
        return page

    async def _set_aside_beyond(
        self, track: PositionTracker[Delivery], held: Sequence[int], head: int
    ) -> None:
        """Set aside what claims a position that the log had not reached when it was asked later.

        An event is published after its commit, so nothing genuine is held before the log has it;
        waiting for it would ask the log without end.
        """
        for delivery in track.take_beyond(head, held):
            await self._set_aside_unknown(delivery)

    async def _set_aside_unknown(self, delivery: Delivery) -> None:
        wrong = Detail(field="position", message="is not in the log")
        await self._handler.set_aside(delivery, [wrong])
        await self._consumer.settle([delivery])

    async def _release(self, followed: Followed) -> None:
        """Handle again what was held, once what it waited for is there."""
        released = followed.track.release()
        if released:
            await self._handle(released)


def _tell_stray(event: CloudEvent) -> None:
    """Say that an event was dropped that another history has at its position."""
    log.warning(
        "event.not_of_this_log",
        message_id=event.id,
        partition=event.partition,
        position=event.position,
        generation=event.generation,
    )


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
