"""Subscribes to events: the history through ReadEvents, then live, each once and in order."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NoReturn
from uuid import UUID

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from shared.client.parking import Handle, Parking, ParkingQueue
from shared.client.subscription_queue import (
    become_reader,
    check_name,
    declare_durable,
    declare_passing,
)
from shared.errors import (
    LogSetBack,
    NoAnswer,
    NotAllowed,
    NotHandled,
    QueryRefused,
    SettingsError,
)
from shared.errors.connection import BROKER_ERRORS
from shared.errors.text import reason_of
from shared.event_log.follower import Follower
from shared.event_log.log_client import LogClient
from shared.event_log.position_tracker import PositionTracker
from shared.event_log.set_back import LogPlace, SetBack, place_of
from shared.messages import topic_patterns as binding
from shared.messages.cloud_event import CloudEvent
from shared.messages.replies import Detail
from shared.rabbitmq.connection import AccessRefused, Broker, connect, ids_of, looping_together
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.rabbitmq.rpc_client import Requests
from shared.values.oversized import LARGEST_EVENT

BATCH_EVENTS: Final = 100
"""Events handled between two acknowledgements."""
PREFETCH: Final = 500
PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
BEYOND_ANY_LOG: Final = 2**63 - 1
"""A position that no log reaches."""

_REMEDY: Final = (
    "forget the positions that are remembered, and what those events did, once its operator has "
    "decided; or look whether this is the right deployment"
)

Positions = Callable[[], Awaitable[Mapping[int, int | LogPlace]]]
OnSetBack = Callable[[SetBack], Awaitable[None]]

log = structlog.get_logger()


class Start(StrEnum):
    """Where a partition begins of which no position is remembered."""

    ORIGIN = "origin"
    NOW = "now"
    """What is published from the first declaration of the queue on, and perhaps, with it, a few
    events that were published in the moments before."""


async def subscribe(
    url: str,
    queue: str,
    handle: Handle,
    positions: Positions | None = None,
    *,
    patterns: Sequence[str] = (binding.EVERYTHING,),
    start: Start = Start.ORIGIN,
    partitions: int = 8,
    attempts: int = 5,
    waits_for: tuple[type[Exception], ...] = (OSError,),
    parking: Parking | None = None,
    on_set_back: OnSetBack | None = None,
    durable: bool = True,
) -> NoReturn:
    """Hand each event that the patterns choose to `handle`, until cancelled.

    `handle` does its work and stores the event's partition and position in one transaction, and
    never lowers a position that it stored before. When it returns, the event is done with.
    `positions` returns what is stored; it is asked at each beginning, and a lost connection is
    one. Without it, positions are remembered as long as this call lasts. So each event takes
    effect once, in the order of its partition, wherever a process or a connection ends. To cancel
    is safe at any moment: the transaction in hand is rolled back, and its event comes again. Only
    a process that is frozen until another one takes over may wake up and handle a few events
    beside it; a unique key on the event's id keeps these from taking effect twice.

    When `handle` raises, it is tried again with growing pauses: without end for `waits_for`
    (what it needs is away), else `attempts` times in all. Then the event is parked, together
    with that patient's later ones, and all others go on; see `ParkingQueue` for what becomes of
    them, or give a `parking` of your own.

    The queue is a durable quorum queue, which a single process reads at a time; another one waits
    until it is gone. Its user needs the roles `subscriber` and `inquirer`. With `durable` off it
    goes with the connection, and needs a name of its own each time; nothing can be parked then.

    Whatever the patterns, the queue gets all that happens in the partitions that they touch, and
    the choice is made here. So a hole in the positions is a loss, of a queue that was full for
    example, and filled from the log at once; and the log is read whenever a partition is quiet.
    No more than 500 deliveries and three pages of the log are in memory.

    A log that was restored to an older state is noticed before anything is taken from it: at once
    where only it is shorter, and after it has grown past that too, where `positions` returns a
    `LogPlace` with the event's id and generation for each partition, instead of a bare position.
    Then `on_set_back` is told what the log does not have any more, once an operator has decided
    to go on with the log as it is; it undoes what these events did, as far as need be, and stores
    `parted_at` as the partition's position. From there the log is handed over again. Without it,
    LogSetBack is raised.

    Raises SettingsError, SchemaError and NotAllowed where an operator must mend something,
    NotHandled where an event can't be parked, and what `positions` or `parking` raise beyond
    `waits_for`. Everything else is waited for.
    """
    wanted = SubscriptionOptions(
        url,
        check_name(queue),
        handle,
        positions,
        binding.check(patterns),
        start,
        partitions,
        attempts,
        waits_for,
        parking,
        on_set_back,
        durable,
    )
    subscription = Subscription(wanted)
    while True:
        await subscription.begin()


@dataclass(frozen=True, slots=True)
class SubscriptionOptions:
    """What a subscriber asked for."""

    url: str
    queue: str
    handle: Handle
    positions: Positions | None
    patterns: tuple[str, ...]
    start: Start
    partitions: int
    attempts: int
    waits_for: tuple[type[Exception], ...]
    parking: Parking | None
    on_set_back: OnSetBack | None
    durable: bool


class _Parted(Exception):
    """Ends a connection: the log of a partition was set back."""

    def __init__(self, found: SetBack) -> None:
        super().__init__(f"{found}")
        self.found = found


class _Undecided(Exception):
    """The log was set back, and nobody has said yet how to go on."""


class Subscription:
    """Lasts over many connections, and remembers what each of them reached."""

    def __init__(self, wanted: SubscriptionOptions) -> None:
        self._wanted = wanted
        self._reached: dict[int, LogPlace] = {}
        self._log_id: UUID | None = None
        self._began = False
        self._said = ""

    async def begin(self) -> None:
        """Connect and follow until the connection is lost; wait with growing pauses for one."""
        passing: tuple[type[Exception], ...] = (
            *BROKER_ERRORS,
            NoAnswer,
            _Undecided,
            *self._wanted.waits_for,
        )
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(passing),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
            before_sleep=self._tell,
            reraise=True,
        ):
            with attempt:
                await self._once()

    async def _once(self) -> None:
        """Follow over one connection; one that was used and is lost begins anew at once."""
        self._began = False
        try:
            async with connect(self._wanted.url, name=f"subscriber {self._wanted.queue}") as broker:
                await self._over(broker)
        except AccessRefused as error:
            raise NotAllowed(
                f"not allowed to subscribe: {error}; the user needs the roles subscriber and "
                "inquirer, and its own name in front of the queue's"
            ) from error
        except _Parted as parted:
            await self._begin_again(parted.found)
        except BROKER_ERRORS as error:
            if not self._began:
                raise
            log.warning("subscription.lost", queue=self._wanted.queue, reason=reason_of(error))
            await asyncio.sleep(PAUSE_S)

    async def _begin_again(self, found: SetBack) -> None:
        """Tell the subscriber what it took that is no more, and go back to where the two part.

        Raises LogSetBack where it does not want to know.
        """
        if self._wanted.on_set_back is None:
            raise LogSetBack(f"{found}: {_REMEDY}")
        if found.parted_at is None:
            raise _Undecided(f"{found}; its operator has not decided yet")
        await self._wanted.on_set_back(found)
        self._reached[found.partition] = LogPlace(found.parted_at, generation=None)
        await asyncio.sleep(PAUSE_S)

    async def _over(self, broker: Broker) -> None:
        queue = self._wanted.queue
        if self._wanted.durable:
            await become_reader(broker, queue)
        log_client = LogClient(await Requests.open(broker), self._log_id)
        # Before the queue is bound, so that it gets all that is published behind them.
        heads, self._log_id = await _heads(log_client, self._wanted.partitions)
        was_there = await self._declare(broker)
        consumer = Consumer(broker, prefetch=PREFETCH, largest=LARGEST_EVENT)
        await consumer.open(queue, counts=self._wanted.durable)
        handing = await self._handing(broker)  # it may move the positions that are stored
        follower = Follower(consumer, log_client, handing, most=BATCH_EVENTS)
        for number, track in (await self._tracks(heads, was_there)).items():
            follower.open(number, track)
        log.info("subscription.started", queue=queue)
        self._began, self._said = True, ""
        try:
            await looping_together(
                consumer.keep_acknowledging(),
                follower.run(),
                follower.keep_up(),
                broker.wait_lost(),
            )
        finally:
            self._remember(follower)
            with suppress(*BROKER_ERRORS):
                await consumer.acknowledge()

    async def _declare(self, broker: Broker) -> bool:
        wanted = self._wanted
        patterns = binding.whole(wanted.patterns)
        if wanted.durable:
            return await declare_durable(broker, wanted.queue, patterns)
        await declare_passing(broker, wanted.queue, patterns)
        return False

    async def _handing(self, broker: Broker) -> "HandlerRunner":
        wanted = self._wanted
        parking = wanted.parking
        if parking is None and wanted.durable:
            parking = await ParkingQueue.open(broker, wanted.queue, wanted.handle)
        parked = set(await parking.parked()) if parking else set()
        return HandlerRunner(wanted, self._reached, parking, parked)

    async def _tracks(
        self, heads: Sequence[int], was_there: bool
    ) -> dict[int, PositionTracker[Delivery]]:
        wanted = self._wanted
        new: set[int] = set()
        stored = await wanted.positions() if wanted.positions else {}
        for number, head in enumerate(heads):
            known = [
                _place(positions[number])
                for positions in (self._reached, stored)
                if number in positions
            ]
            if known:
                self._reached[number] = max(known, key=lambda place: place.position)
            elif wanted.start is Start.ORIGIN:
                self._reached[number] = LogPlace(0)
            elif not was_there:
                self._reached[number] = LogPlace(head, generation=None)
                new.add(number)
        return {
            number: _tracker(
                self._reached.get(number, LogPlace(0)),
                starts_at_first=number not in self._reached,
                at_latest=number in new,
            )
            for number in range(wanted.partitions)
        }

    def _remember(self, follower: Follower) -> None:
        """Keep what was read and left out as well, so that it is not read again."""
        for number, reached in self._reached.items():
            place = follower.taken(number)
            self._reached[number] = max(reached, place, key=lambda one: one.position)

    def _tell(self, state: RetryCallState) -> None:
        """Say why there is no subscription, when the reason changes."""
        error = state.outcome.exception() if state.outcome else None
        reason = reason_of(error) if error else ""
        if reason != self._said:
            log.warning("subscription.waiting", queue=self._wanted.queue, reason=reason)
        self._said = reason


class HandlerRunner:
    """Hands events over, one after another; tries again, and parks, over one connection."""

    def __init__(
        self,
        wanted: SubscriptionOptions,
        reached: dict[int, LogPlace],
        parking: Parking | None,
        parked: set[str],
    ) -> None:
        self._wanted = wanted
        self._chosen = binding.chooses(wanted.patterns)
        self._reached = reached
        self._parking = parking
        self._parked = parked

    async def apply(self, events: Sequence[CloudEvent]) -> None:
        """Hand over those that are chosen."""
        for event in events:
            chosen = self._chosen(event)
            if chosen:
                await self._hand_over(event)
            self._reached[event.partition] = place_of(event)  # before anything may be cancelled
            if chosen:
                await asyncio.sleep(0)  # for heartbeats, where the handler never waits

    async def _hand_over(self, event: CloudEvent) -> None:
        if event.subject in self._parked:
            await self._park(event, "behind an event of this patient that is parked")
            return
        try:
            await self._try(event)
        except Exception as error:
            if self._parking is None:
                raise NotHandled(f"event {event.id} could not be handled") from error
            _tell_parked(event, error)
            await self._park(event, f"{type(error).__name__}: {error}")

    async def _try(self, event: CloudEvent) -> None:
        faults = 0

        def enough(state: RetryCallState) -> bool:
            nonlocal faults
            error = state.outcome.exception() if state.outcome else None
            faults += not isinstance(error, self._wanted.waits_for)
            return faults >= self._wanted.attempts

        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(Exception),
            stop=enough,
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE_S),
            reraise=True,
        ):
            with attempt:
                await self._wanted.handle(event)

    async def _park(self, event: CloudEvent, reason: str) -> None:
        assert self._parking is not None  # noqa: S101 - or nobody would be parked
        await self._parking.park(event, reason)
        self._parked.add(event.subject)

    async def set_aside(self, delivery: Delivery, details: Sequence[Detail]) -> None:
        """Drop what is no event of the log; the log has all that are."""
        log.error(
            "delivery.dropped",
            queue=delivery.source.queue,
            reason=details[0].field,
            **ids_of(delivery.message),
        )

    async def on_compared(self, partition: int, found: SetBack | None) -> None:
        """End the connection where the log was set back: the subscriber must be told."""
        if found is not None:
            raise _Parted(found)

    def on_batch(
        self, deliveries: int, events: int, partitions: Sequence[int], seconds: float
    ) -> None:
        """Nothing is measured here."""

    def on_log_page(self, events: int) -> None:
        """Nothing is measured here."""


def _place(position: int | LogPlace) -> LogPlace:
    """Take a bare position for one of the first generation: sooner a false alarm than none."""
    return LogPlace(position) if isinstance(position, int) else position


def _tracker(
    place: LogPlace, *, starts_at_first: bool, at_latest: bool
) -> PositionTracker[Delivery]:
    return PositionTracker(
        place.position,
        starts_at_first,
        at_latest,
        event_id=place.event_id,
        generation=place.generation,
    )


async def _heads(log_client: LogClient, partitions: int) -> tuple[list[int], UUID | None]:
    """Read where each partition's log ends, and which log it is.

    Raises SettingsError where there are more or fewer partitions.
    """
    wrong = SettingsError(f"the deployment has not {partitions} partitions: give the right number")
    try:
        pages = await asyncio.gather(
            *(log_client.read(n, BEYOND_ANY_LOG, 1) for n in range(partitions))
        )
    except QueryRefused:
        raise wrong from None
    try:
        await log_client.read(partitions, BEYOND_ANY_LOG, 1)
    except QueryRefused:
        return [page.head for page in pages], pages[0].log
    raise wrong


def _tell_parked(event: CloudEvent, error: Exception) -> None:
    log.error(
        "event.parked",
        message_id=event.id,
        correlation_id=event.correlationid,
        partition=event.partition,
        position=event.position,
        reason=type(error).__name__,
    )
