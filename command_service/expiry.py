"""Records the ends of consents once they have come, for whoever subscribes.

Nothing waits for it to be right: every answer and every decision compares with the end. An end is
found in a table that the append fills, in its order; what was found is decided from the patient's
own state, so what was revoked, extended or recorded already is only forgotten. A death between any
two steps has it found again.
"""

import asyncio
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import Final

import asyncpg
import structlog

from command_service import metrics
from command_service.domain.decisions import Batch
from command_service.path.command_path import CommandPath
from command_service.publisher import Publisher
from command_service.store.ends import DueEnd, Ends
from command_service.store.event_store import EventStore
from shared.errors import Fenced
from shared.postgres.uuids import new_uuid
from shared.values.partition import Lease

LOOK_EVERY_S: Final = 1.0
MOST_AT_ONCE: Final = 100
"""Ends; a command that comes meanwhile waits for no more than these."""
LOOK_AGAIN_AFTER_S: Final = 60.0
"""When an end is tried again that could not be recorded."""
MOST_PUT_OFF: Final = 10_000
"""Patients; more that are at fault at once are a fault of something else."""
LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    OSError,
    Fenced,
)
"""What ends the session, as it does for commands: it is no patient's fault."""

log = structlog.get_logger()


class Expiry:
    """Looks for ends that have come, and appends what they cause, in turn with the commands."""

    def __init__(
        self, ends: Ends, store: EventStore, path: CommandPath, publisher: Publisher
    ) -> None:
        self._ends = ends
        self._store = store
        self._path = path
        self._publisher = publisher
        self._leases: dict[int, Lease] = {}
        self._put_off: dict[str, float] = {}
        """Patients whose ends can't be recorded now, and when to try again."""
        self._oldest_since = inf
        """When the oldest end came that was found and not recorded yet."""

    def oldest_s(self) -> float:
        """Tell how long ago the oldest end came that waits; it grows while nothing can be done."""
        return max(0.0, monotonic() - self._oldest_since)

    def open(self, lease: Lease) -> None:
        """Begin to record the ends of a partition."""
        self._leases[lease.partition] = lease

    async def close(self, partition: int) -> None:
        """Record none of this partition any more."""
        async with self._path.turn:
            del self._leases[partition]

    async def run(self) -> None:
        """Record what is due, until cancelled; as long as there is more, half of the time."""
        while True:
            began = monotonic()
            found = await self._look()
            if found:
                await self._record(found)
            metrics.ENDS_PUT_OFF.set(len(self._put_off))
            full = len(found) == MOST_AT_ONCE
            await asyncio.sleep(monotonic() - began if full else LOOK_EVERY_S)

    async def _look(self) -> list[DueEnd]:
        """Find the earliest ends that have come, and forget who was put off long enough."""
        now = monotonic()
        self._put_off = {who: until for who, until in self._put_off.items() if until > now}
        found = await self._ends.read_due(list(self._leases), MOST_AT_ONCE, list(self._put_off))
        self._oldest_since = now - found[0].overdue_s if found else inf
        return found

    async def _record(self, found: Sequence[DueEnd]) -> None:
        """Record them together; where that can't be done, one patient after the other.

        Whatever the reason is, what is in memory is not trusted the second time.
        """
        if (reason := await self._fault_of(found)) is None:
            return
        log.warning("ends.tried_again", reason=reason, ends=len(found))
        self._path.streams.clear()
        for patient_id in dict.fromkeys(end.stream_id for end in found):
            reason = await self._fault_of([end for end in found if end.stream_id == patient_id])
            if reason is not None:
                self._put_aside(patient_id, reason)

    async def _fault_of(self, found: Sequence[DueEnd]) -> str | None:
        """Record ends; return what is wrong with them where that can't be done."""
        try:
            await self._record_together(found)
        except LOST:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the other patients go on
            return type(error).__name__
        return None

    async def _record_together(self, found: Sequence[DueEnd]) -> None:
        began = monotonic()
        async with self._path.turn:
            due = [end for end in found if end.partition in self._leases]
            epochs = {end.partition: self._leases[end.partition].epoch for end in due}
            if not due:
                return
            batch = await self._decided(due, epochs)
            appended = await self._store.append(
                list(batch.decided.values()), epochs, times=batch.times, receipts_checked=True
            )
            self._publisher.add(appended.events)
            self._path.remember(batch, only_known=True)
            await self._ends.forget(_looked_into(due, batch), epochs)
        metrics.EVENTS_APPENDED.inc(len(appended.events))
        metrics.ENDS_RECORDED.inc(len(appended.events))
        log.info(
            "ends.recorded",
            partitions=sorted(epochs),
            ends=len(due),
            events=len(appended.events),
            milliseconds=round((monotonic() - began) * 1000, 1),
        )

    async def _decided(self, due: Sequence[DueEnd], epochs: dict[int, int]) -> Batch:
        """Decide what the ends cause, from the patients' states and the log's own time."""
        partition_of = {end.stream_id: end.partition for end in due}
        streams = await self._path.load_streams(partition_of)
        times = await self._store.read_times(epochs)
        batch = Batch({}, streams, times)
        for patient_id, partition in partition_of.items():
            batch.expire(patient_id, partition, new_uuid)
            if reason := streams[patient_id].unreadable:
                self._put_aside(patient_id, reason)
        return batch

    def _put_aside(self, patient_id: str, reason: str) -> None:
        """Try one patient's ends later; the others' come first."""
        if len(self._put_off) < MOST_PUT_OFF:
            self._put_off[patient_id] = monotonic() + LOOK_AGAIN_AFTER_S
        log.error("ends.put_off", reason=reason)


def _looked_into(due: Sequence[DueEnd], batch: Batch) -> list[DueEnd]:
    """Tell which need no second look.

    An end that has not come by the time that was decided by is still needed: the server's clock
    stepped back since it was found.
    """
    return [
        end
        for end in due
        if end.expires_at <= batch.times[end.partition]
        and not batch.streams[end.stream_id].unreadable
    ]
