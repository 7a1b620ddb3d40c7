"""The path of a batch of events: deliveries → decode → place → fold → project → settle."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

import structlog
from pydantic import ValidationError

from projection_service import metrics
from projection_service.fold import fold, keys, read
from projection_service.read_model import Changes, Move, ReadModel
from shared.broker import Channel, publish_in_order
from shared.cloud_event import CloudEvent
from shared.dead_letter import dead_letter
from shared.errors import NoAnswer
from shared.intake import Intake, Item
from shared.leases import Lease
from shared.log_client import LogClient
from shared.metrics import LAST_PROGRESS
from shared.replies import Detail
from shared.validation import details_of

MAX_BATCH: Final = 500
HEAD_CHECK_S: Final = 5.0
FIRST_CHECK_S: Final = 0.5
RETRY_S: Final = 0.5

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class Track:
    """How far one partition is projected, and what had to be held because of a gap before it."""

    lease: Lease
    checkpoint: int
    held: dict[int, Item] = field(default_factory=dict)
    """By position; held until the gap before it is filled."""
    leaving: bool = False
    """Whether it is being handed over: nothing is held any more."""
    busy_at: float = 0.0
    """When something last arrived."""

    def gap(self) -> bool:
        """Whether something is held that can't be applied yet."""
        return bool(self.held)


class Projector:
    """Projects the partitions that this worker owns."""

    def __init__(
        self, intake: Intake, read_model: ReadModel, log_client: LogClient, dead_letters: Channel
    ) -> None:
        self._intake = intake
        self._read_model = read_model
        self._log = log_client
        self._dead_letters = dead_letters
        self._tracks: dict[int, Track] = {}
        self._one_at_a_time = asyncio.Lock()
        self._gap = asyncio.Event()
        self.progress = asyncio.Event()
        """Set whenever patients' versions have moved on."""

    async def open(self, lease: Lease) -> None:
        """Begin with a partition where its last owner stopped."""
        checkpoint = await self._read_model.open_checkpoint(lease.partition)
        due = monotonic() - HEAD_CHECK_S + FIRST_CHECK_S
        self._tracks[lease.partition] = Track(lease, checkpoint, busy_at=due)

    def let_go(self, partition: int) -> None:
        """Wait for no gap any more: what is held goes back when its queue is closed."""
        track = self._tracks[partition]
        self._intake.let_go(track.held.values())
        track.held.clear()
        track.leaving = True

    def close(self, partition: int) -> None:
        """Stop with a partition."""
        del self._tracks[partition]

    async def run(self) -> None:
        """Project what arrives, until cancelled."""
        while True:
            items = await self._intake.take(MAX_BATCH)
            async with self._one_at_a_time:
                await self._handle(items)

    async def keep_up(self) -> None:
        """Fill gaps, and look now and then whether a quiet partition has missed something."""
        while True:
            for track in list(self._tracks.values()):
                if track.gap() or monotonic() - track.busy_at > HEAD_CHECK_S:
                    await self._catch_up(track)
            if not any(track.gap() for track in self._tracks.values()):
                self._gap.clear()
            await _wait(self._gap, FIRST_CHECK_S)

    async def _handle(self, items: Sequence[Item]) -> None:
        began = monotonic()
        done, events = await self._place(items)
        await self._project(events)
        await self._intake.settle(done)
        for number in {event.partition for event in events}:
            await self._release(self._tracks[number])
        _report(len(items), len(events), monotonic() - began)

    async def _place(self, items: Sequence[Item]) -> tuple[list[Item], list[CloudEvent]]:
        """Tell *seen*, *next* and *gap* apart; return what is done with, and what to apply."""
        done: list[Item] = []
        events: list[CloudEvent] = []
        reached = {number: track.checkpoint for number, track in self._tracks.items()}
        for item in items:
            event = await self._decode(item)
            track = self._tracks.get(item.source.lease.partition) if item.source.lease else None
            if event is None:
                done.append(item)
            elif track is not None and self._is_gap(track, event, reached):
                self._hold(track, event, item)
            elif track is not None:
                track.busy_at = monotonic()
                done.append(item)
                if event.position == reached[event.partition] + 1:
                    reached[event.partition] += 1
                    events.append(event)
        return done, events

    @staticmethod
    def _is_gap(track: Track, event: CloudEvent, reached: Mapping[int, int]) -> bool:
        follows = event.position <= reached[event.partition] + 1
        return not follows and event.position not in track.held

    def _hold(self, track: Track, event: CloudEvent, item: Item) -> None:
        if track.leaving:
            self._intake.let_go([item])
            return
        if not track.held:
            log.info(
                "gap.found",
                partition=event.partition,
                checkpoint=track.checkpoint,
                position=event.position,
            )
        track.held[event.position] = item
        self._gap.set()

    async def _decode(self, item: Item) -> CloudEvent | None:
        """Read an event; what is none is set aside, and loses its place to nobody."""
        try:
            event = CloudEvent.model_validate_json(item.delivery.body)
        except ValidationError as error:
            await self._set_aside(item, details_of(error))
            return None
        if item.source.lease is None or event.partition != item.source.lease.partition:
            await self._set_aside(item, [Detail(field="partition", message="is of another queue")])
            return None
        return event

    async def _set_aside(self, item: Item, details: Sequence[Detail]) -> None:
        log.error("delivery.set_aside", queue=item.source.queue, reason=details[0].field)
        message = dead_letter(item.delivery, "not_an_event", details)
        await publish_in_order(self._dead_letters, [message])

    async def _project(self, events: Sequence[CloudEvent]) -> None:
        """Apply events that follow their checkpoints, in one transaction."""
        if not events:
            return
        facts = [(event, read(event)) for event in events]
        patients = list({event.subject for event in events})
        consents, parked = await asyncio.gather(
            self._read_model.read_consents(keys(facts)), self._read_model.read_parked(patients)
        )
        changes = fold(facts, consents, parked)
        changes.moves = self._moves(events)
        await self._read_model.project(changes)
        self._moved(changes)

    def _moves(self, events: Iterable[CloudEvent]) -> dict[int, Move]:
        reached = {event.partition: event.position for event in events}
        return {
            number: Move(track.lease.epoch, track.checkpoint, reached[number])
            for number, track in self._tracks.items()
            if number in reached
        }

    def _moved(self, changes: Changes) -> None:
        for number, move in changes.moves.items():
            self._tracks[number].checkpoint = move.position
        metrics.EVENTS.labels("parked").inc(len(changes.parked))
        for parked in changes.parked:
            log.error(
                "event.parked",
                partition=parked.partition,
                position=parked.position,
                reason=parked.reason,
            )
        self.progress.set()

    async def _catch_up(self, track: Track) -> None:
        """Read on from the checkpoint in the log, until what is held follows or nothing is left."""
        try:
            while await self._read_on(track):
                pass
        except NoAnswer as error:
            log.warning("log.unanswered", partition=track.lease.partition, reason=str(error))
            await asyncio.sleep(RETRY_S)

    async def _read_on(self, track: Track) -> bool:
        """Apply one page of the log; whether there may be more to read."""
        partition = track.lease.partition
        held = dict(track.held)
        page = await self._log.read(partition, track.checkpoint)
        async with self._one_at_a_time:
            if self._tracks.get(partition) is not track:
                return False
            track.busy_at = monotonic()
            following = [one for one in page.events if one.position > track.checkpoint]
            await self._project(following)
            metrics.EVENTS.labels("read_from_log").inc(len(following))
            await self._set_aside_beyond(track, held, page.head)
            await self._release(track)
        return bool(following) and (track.gap() or track.checkpoint < page.head)

    async def _set_aside_beyond(self, track: Track, held: Mapping[int, Item], head: int) -> None:
        """Set aside what claims a position that the log had not reached when it was asked later.

        An event is published after its commit, so nothing genuine is held before the log has it;
        waiting for it would ask the log without end.
        """
        for position, item in held.items():
            if position > head and track.held.get(position) is item:
                del track.held[position]
                await self._set_aside(item, [Detail(field="position", message="is not in the log")])
                await self._intake.settle([item])

    async def _release(self, track: Track) -> None:
        """Handle again what was held, once what it waited for is there."""
        if track.held and min(track.held) <= track.checkpoint + 1:
            held = [item for _, item in sorted(track.held.items())]
            track.held.clear()
            await self._handle(held)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


def _report(deliveries: int, events: int, seconds: float) -> None:
    metrics.EVENTS.labels("applied").inc(events)
    metrics.BATCH.observe(deliveries)
    metrics.BATCH_SECONDS.observe(seconds)
    LAST_PROGRESS.labels("project").set_to_current_time()
    log.info(
        "batch.projected",
        deliveries=deliveries,
        events=events,
        milliseconds=round(seconds * 1000, 1),
    )
