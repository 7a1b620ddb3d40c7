"""The path of a batch: deliveries → decode → load → decide → append → publish and settle."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Final
from uuid import UUID

from command_service import metrics
from command_service.domain.decisions import EMPTY, Batch, Decision, Receipt, Ruling, Stream
from command_service.domain.received import Received
from command_service.path.decode import decode, decode_unroutable, strayed
from command_service.path.poison_messages import PoisonMessages
from command_service.path.settle import Settlement, Settler
from command_service.publisher import Publisher
from command_service.store.event_store import Appended, EventStore
from command_service.store.snapshot_writer import SnapshotWriter
from command_service.store.stream_cache import StreamCache
from shared.errors import Conflict, DecidedBefore
from shared.messages.replies import CommandRejected, Outcome
from shared.postgres.uuids import new_uuid
from shared.rabbitmq.consumer import SUSPICIOUS, Consumer, Delivery
from shared.telemetry import tracing
from shared.telemetry.batch_lines import BatchLines
from shared.telemetry.metrics import last_progress

MAX_BATCH: Final = 500
MOST_DECISIONS: Final = 10
"""Who loses to another writer so often loses to something else."""
CHECK_RECEIPTS_ABOVE: Final = 20
"""Commands for which no receipts are read at first: the append itself finds out a repeated one.
Where more are at stake, a look costs less than a batch that has to be decided again."""


class CommandPath:
    """Carries batches of commands from the inbox to their outcomes."""

    def __init__(
        self,
        consumer: Consumer,
        store: EventStore,
        settler: Settler,
        publisher: Publisher,
        poison_messages: PoisonMessages,
        snapshots: SnapshotWriter,
        partitions: int,
        longest_grant: timedelta | None = None,
    ) -> None:
        self._consumer = consumer
        self._store = store
        self._settler = settler
        self._publisher = publisher
        self._poison = poison_messages
        self._snapshots = snapshots
        self._partitions = partitions
        self._longest_grant = longest_grant
        self.lines = BatchLines("batch.appended")
        self.streams = StreamCache()
        self.turn = asyncio.Lock()
        """Held from reading states to handing events on, so that these come in the log's order."""

    async def run(self) -> None:
        """Handle batches until cancelled."""
        while True:
            deliveries = await self._consumer.take(MAX_BATCH, paced=True)
            if deliveries[0].delivery_count >= SUSPICIOUS:
                await self._handle_suspect(deliveries[0])
            else:
                await self._handle_and_settle(deliveries)

    async def _handle_suspect(self, delivery: Delivery) -> None:
        if await self._poison.is_poison(delivery):
            if not await self._settler.give_up(delivery):
                return  # it may come again before it is set aside, and is still guilty then
        else:
            async with self._poison.not_blamed_for_outages(delivery):
                await self._handle_and_settle([delivery])
        await self._poison.clear(delivery)

    async def _handle_and_settle(self, deliveries: Sequence[Delivery]) -> None:
        began = monotonic()
        with tracing.span(tracing.PROCESS, deliveries):
            async with self.turn:
                outcomes, appended = await self.handle(deliveries)
                self._publisher.add(appended.events)
            with tracing.span(tracing.SETTLE, deliveries):
                both = zip(deliveries, outcomes, strict=True)
                answered = [Settlement(delivery, outcome) for delivery, outcome in both]
                await self._settler.answer(answered)
                self._publisher.begin()
                await asyncio.sleep(0)  # the loop writes at the end of its turn: no later than now
                await self._settler.settle(answered)
        self._report(deliveries, appended, monotonic() - began)

    async def handle(self, deliveries: Sequence[Delivery]) -> tuple[list[Outcome], Appended]:
        """Decide and append a batch; decide again where another writer was first.

        Raises Conflict where that does not end.
        """
        decoded = [self._decode(delivery) for delivery in deliveries]
        received = [request for request in decoded if isinstance(request, Received)]
        epochs = {
            delivery.source.lease.partition: delivery.source.lease.epoch
            for delivery in deliveries
            if delivery.source.lease
        }
        check_receipts = len(received) > CHECK_RECEIPTS_ABOVE or any(
            delivery.message.redelivered for delivery in deliveries
        )
        for _ in range(MOST_DECISIONS):
            batch = await self._load(received, receipts=check_receipts)
            if not check_receipts and batch.has_unreadable:
                # Such a patient's commands are not appended, which else finds what was decided.
                check_receipts = True
                continue
            if batch.involves_ends(received):
                batch.times = await self._store.read_times(epochs)
            rulings = [_rule(batch, request) for request in decoded]
            try:
                appended = await self._append(batch, epochs, receipts_checked=check_receipts)
            except DecidedBefore:
                check_receipts = True
            except Conflict:
                self.streams.clear()
            else:
                self.remember(batch)
                return [_outcome(ruling, appended) for ruling in rulings], appended
        raise Conflict(f"decided {MOST_DECISIONS} times, and the facts had changed each time")

    async def _append(
        self, batch: Batch, epochs: dict[int, int], *, receipts_checked: bool
    ) -> Appended:
        with tracing.span(tracing.APPEND):
            return await self._store.append(
                list(batch.decided.values()),
                epochs,
                times=batch.times,
                receipts_checked=receipts_checked,
            )

    def _decode(self, delivery: Delivery) -> Received | CommandRejected:
        if delivery.source.lease is None:
            return decode_unroutable(delivery.message, self._partitions)
        received = decode(delivery.message, self._partitions)
        if isinstance(received, Received) and received.partition != delivery.source.lease.partition:
            return strayed(received, self._partitions)
        return received

    async def _load(self, received: Sequence[Received], *, receipts: bool) -> Batch:
        """Read the patients that are not in memory, and receipts beside them if wanted."""
        loading = self.load_streams({request.patient_id for request in received})
        decided: dict[UUID, Receipt] = {}
        if receipts:
            ids = list({request.command_id for request in received})
            decided, streams = await asyncio.gather(self._store.read_receipts(ids), loading)
        else:
            streams = await loading
        return Batch(decided, streams, longest_grant=self._longest_grant)

    async def load_streams(self, patient_ids: Iterable[str]) -> dict[str, Stream]:
        """Return these patients' states, from memory or from the log."""
        states = {patient_id: self.streams.get(patient_id) for patient_id in patient_ids}
        missing = [patient_id for patient_id, stream in states.items() if stream is None]
        read = await self._store.read_streams(missing)
        return {
            patient_id: stream or read.get(patient_id, EMPTY)
            for patient_id, stream in states.items()
        }

    def remember(self, batch: Batch, *, only_known: bool = False) -> None:
        """Keep the states that a batch has left in the log, or only those that are kept already."""
        decided = [decision.received for decision in batch.decided.values()]
        for patient_id, partition in {r.patient_id: r.partition for r in decided}.items():
            if only_known and self.streams.get(patient_id) is None:
                continue
            stream = self._snapshots.offer(patient_id, batch.streams[patient_id])
            self.streams.put(partition, patient_id, stream)

    def _report(self, deliveries: Sequence[Delivery], appended: Appended, seconds: float) -> None:
        metrics.BATCH.observe(len(deliveries))
        metrics.BATCH_SECONDS.observe(seconds)
        last_progress("append").set_to_current_time()
        metrics.EVENTS_APPENDED.inc(len(appended.events))
        self.lines.note(
            {delivery.partition for delivery in deliveries if delivery.partition is not None},
            seconds,
            deliveries=len(deliveries),
            decided=len(appended.decided),
            events=len(appended.events),
        )


def _rule(batch: Batch, decoded: Received | CommandRejected) -> Ruling:
    return batch.answer(decoded, new_uuid) if isinstance(decoded, Received) else decoded


def _outcome(ruling: Ruling, appended: Appended) -> Outcome:
    match ruling:
        case Decision():
            return appended.outcome(ruling.received.command_id)
        case Receipt():
            return ruling.outcome
        case _:
            return ruling
