"""Projects events that follow the checkpoints: read → fold → project, one transaction a batch."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Final

import structlog

from projection_service import metrics
from projection_service.consent_cache import ConsentCache
from projection_service.log_identity.set_backs import SetBacks
from projection_service.projections.changes import Changes, Move
from projection_service.projections.fold import fold, read
from projection_service.read_model import ReadModel
from shared.errors import RowLocked
from shared.event_log.follower import Follower
from shared.event_log.log_client import LogClient
from shared.event_log.position_tracker import PositionTracker
from shared.event_log.set_back import SetBack, place_of
from shared.messages.cloud_event import CloudEvent
from shared.messages.replies import Detail
from shared.rabbitmq.connection import ids_of
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.rabbitmq.dead_letter import DeadLetters, dead_letter
from shared.telemetry import tracing
from shared.telemetry.batch_lines import BatchLines
from shared.telemetry.metrics import last_progress
from shared.telemetry.readiness import Readiness
from shared.values.partition import Lease

MAX_BATCH: Final = 500
LOCK: Final = "lock"
"""Under what the readiness keeps which partitions wait for one."""
REMEDY: Final = (
    "another session has locked a row of the read model that is to be changed; end its transaction "
    "(pg_stat_activity has it), and they go on by themselves"
)

_APPLIED: Final = metrics.EVENTS.labels("applied")
_PARKED: Final = metrics.EVENTS.labels("parked")

log = structlog.get_logger()


class Projector:
    """Projects the partitions that this worker owns; a follower brings the events in order."""

    def __init__(
        self,
        consumer: Consumer,
        read_model: ReadModel,
        log_client: LogClient,
        dead_letters: DeadLetters,
        on_progress: Callable[[Mapping[str, int]], bool],
        set_backs: SetBacks,
        readiness: Readiness,
    ) -> None:
        """`on_progress` is told the versions that patients have reached; it says if one waits."""
        self.lines = BatchLines("batch.projected")
        self._read_model = read_model
        self._cache = ConsentCache(read_model)
        self.projected = self._cache.version
        self.recall = self._cache.recall
        self._dead_letters = dead_letters
        self._on_progress = on_progress
        self._set_backs = set_backs
        self._readiness = readiness
        self._locked: set[int] = set()
        self._leases: dict[int, Lease] = {}
        self._follower = Follower(
            consumer, log_client, self, most=MAX_BATCH, side_by_side=True, heeds_disputes=True
        )
        self.keep_up = self._follower.keep_up
        self.let_go = self._follower.let_go

    async def run(self) -> None:
        """Project what arrives, until cancelled."""
        try:
            await self._follower.run()
        finally:
            self._note_lock(self._locked, is_locked=False)

    async def open(self, lease: Lease) -> None:
        """Begin with a partition where its last owner stopped."""
        taken = await self._read_model.open_checkpoint(lease.partition)
        self._cache.forget(lease.partition)
        self._leases[lease.partition] = lease
        self._follower.open(
            lease.partition,
            PositionTracker(taken.position, event_id=taken.event_id, generation=taken.generation),
        )

    async def close(self, partition: int) -> None:
        """Stop with a partition that was let go, once nothing of it is being applied."""
        await self._follower.close(partition)
        self._note_lock({partition}, is_locked=False)
        del self._leases[partition]

    async def apply(self, events: Sequence[CloudEvent]) -> None:
        """Apply events that follow their checkpoints, in one transaction."""
        partitions = {event.partition for event in events}
        try:
            with tracing.span(tracing.PROJECT, events):
                await self._apply(events)
        except RowLocked:
            if len(partitions) == 1:  # of several, only one may be in the way
                self._note_lock(partitions, is_locked=True)
            raise
        self._note_lock(partitions, is_locked=False)

    def _note_lock(self, partitions: Set[int], *, is_locked: bool) -> None:
        """Have the readiness name the partitions that wait for somebody to let go of a row."""
        before = self._locked
        self._locked = before | partitions if is_locked else before - partitions
        if self._locked == before:
            return
        if self._locked:
            numbers = ", ".join(map(str, sorted(self._locked)))
            self._readiness.report(LOCK, "row_locked", f"partition {numbers}: {REMEDY}")
        else:
            self._readiness.report(LOCK)

    async def _apply(self, events: Sequence[CloudEvent]) -> None:
        facts = [(event, read(event)) for event in events]
        changes = fold(facts, *await self._cache.load(facts))
        changes.moves = self._moves(events)
        await self._read_model.project(changes)
        self._cache.note(changes)
        if self._on_progress(changes.versions):
            await asyncio.sleep(0)  # who waits is answered before what nobody waits for is done
        _tell_parked(changes)

    def _moves(self, events: Iterable[CloudEvent]) -> dict[int, Move]:
        reached = {event.partition: event for event in events}
        places = {number: place_of(event) for number, event in reached.items()}
        return {
            number: Move(
                self._leases[number].epoch,
                self._follower.position(number),
                place.position,
                place.event_id,
                place.generation,
            )
            for number, place in places.items()
        }

    async def on_compared(self, partition: int, found: SetBack | None) -> None:
        """Refuse answers about patients whose log was set back, or allow them again."""
        await self._read_model.mark_set_back(self._leases[partition], is_set_back=found is not None)
        await self._set_backs.look()

    async def set_aside(self, delivery: Delivery, details: Sequence[Detail]) -> None:
        """Copy what is no event of the log into the dead letters."""
        log.error(
            "delivery.set_aside",
            queue=delivery.source.queue,
            reason=f"not_an_event: {details[0].field}",
            **ids_of(delivery.message),
        )
        message = dead_letter(delivery.message, "not_an_event", details)
        await self._dead_letters.set_aside([(delivery, message)])

    def on_batch(
        self, deliveries: int, events: int, partitions: Sequence[int], seconds: float
    ) -> None:
        """Measure a batch, and log it."""
        _APPLIED.inc(events)
        metrics.BATCH.observe(deliveries)
        metrics.BATCH_SECONDS.observe(seconds)
        last_progress("project").set_to_current_time()
        self.lines.note(partitions, seconds, deliveries=deliveries, events=events)

    def on_log_page(self, events: int) -> None:
        """Count what came from the log."""
        metrics.EVENTS.labels("read_from_log").inc(events)


def _tell_parked(changes: Changes) -> None:
    _PARKED.inc(len(changes.parked))
    for parked in changes.parked:
        event = CloudEvent.model_validate_json(parked.event)
        log.error(
            "event.parked",
            message_id=event.id,
            correlation_id=event.correlationid,
            partition=parked.partition,
            position=parked.position,
            reason=parked.reason,
        )
