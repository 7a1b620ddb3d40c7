"""The event store: append and read, over asyncpg.

A batch is appended by one statement, over all its partitions, events and receipts together.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Final
from uuid import UUID

import asyncpg
import structlog
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from command_service.domain.decisions import (
    Decision,
    NewEvent,
    Receipt,
    Stream,
    unreadable_history,
)
from command_service.domain.received import EndsCame, Received
from command_service.domain.replay import replay
from command_service.domain.snapshot import FORMAT, Snapshot, SnapshotError
from command_service.store.recorded_event import FreshEvent, RecordedEvent
from shared.errors import Conflict, DecidedBefore, Fenced
from shared.messages.events import ConsentGranted, UnknownEventError, read_event
from shared.messages.queries import GenerationBegan
from shared.messages.replies import (
    CommandAccepted,
    CommandRejected,
    Detail,
    EventSummary,
    Outcome,
)
from shared.postgres.connection import Queryable
from shared.postgres.kept_connection import KeptConnection
from shared.postgres.statements import Row, as_json, statement
from shared.values.partition import Lease

_APPEND = statement("command_service", "append")
_READ_STREAMS = statement("command_service", "read_streams")
_WRITE_SNAPSHOT = statement("command_service", "write_snapshot")
_READ_RECEIPTS = statement("command_service", "read_receipts")
_READ_LOG = statement("command_service", "read_log")
_READ_LOG_OF_PATIENT = statement("command_service", "read_log_of_patient")
_READ_TIMES = statement("command_service", "read_times")
_READ_HEAD = statement("command_service", "read_head")
_READ_SERVER = statement("command_service", "read_server")
_BEGIN_GENERATION = statement("command_service", "begin_generation")
_MARK_PUBLISHED = statement("command_service", "mark_published")

REPLAY_IN_THREAD_CHARS: Final = 500_000
"""Characters of history, about a tenth of a second to replay."""
_NO_FORMAT: Final = 0
"""No snapshot has it, so that histories are read from the start."""

_DETAILS: Final[TypeAdapter[tuple[Detail, ...]]] = TypeAdapter(tuple[Detail, ...])
_CONFLICTS: Final = {
    "events_stream_version_key": Conflict,
    "command_receipts_command_id_key": DecidedBefore,
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Appended:
    """What a batch became in the log."""

    events: Sequence[RecordedEvent]
    decided: Mapping[UUID, tuple[Decision, Sequence[RecordedEvent]]]
    """By command id: what was decided, and the events that it became."""

    def outcome(self, command_id: UUID) -> Outcome:
        """Write what the sender of a command is told."""
        return _outcome(*self.decided[command_id])


@dataclass(frozen=True, slots=True)
class Head:
    """How far the log of a partition goes, and how far the broker has confirmed it."""

    position: int
    published_position: int
    log_id: UUID | None = None
    generations: Sequence[GenerationBegan] = ()

    @property
    def generation(self) -> int | None:
        """Of what is appended now; None for the first."""
        return self.generations[-1].generation if self.generations else None


class _TakenBack(Exception):
    """Ends a transaction that is to leave nothing."""


_UNKNOWN: Final = Head(0, 0)


class EventStore:
    """Reads and appends; it never changes what it holds."""

    def __init__(self, pool: Queryable, kept: KeptConnection | None = None) -> None:
        """Do what every batch needs on a connection that is kept, where there is one."""
        self._pool = pool
        self._kept = kept or pool
        self._heads: dict[int, Head] = {}
        """Of the partitions that were opened: where their logs end at least."""
        self._published: dict[int, int] = {}
        """Up to where the broker has confirmed their events; the database may know of fewer."""

    @asynccontextmanager
    async def on_trial(self) -> AsyncIterator["EventStore"]:
        """Give a store on which everything is taken back in the end."""
        assert isinstance(self._pool, asyncpg.Pool)  # noqa: S101 - a trial has no trials
        with suppress(_TakenBack):
            async with self._pool.acquire() as connection, connection.transaction():
                yield EventStore(connection)
                raise _TakenBack

    async def append(
        self,
        decisions: Sequence[Decision],
        epochs: Mapping[int, int],
        *,
        times: Mapping[int, datetime] = MappingProxyType({}),
        receipts_checked: bool = False,
    ) -> Appended:
        """Record decisions and their events in one transaction.

        `epochs` holds the epoch of each partition owned, `times` the time by which was decided
        where it mattered: nothing is recorded as earlier. `receipts_checked` spares the look for
        receipts where they were read just before. Raises Fenced where another worker took one of
        the partitions, DecidedBefore where a command id has a receipt already, Conflict where
        another writer was first: nothing is recorded then.
        """
        if not decisions:
            return Appended((), {})
        counts = Counter[int]()
        for decision in decisions:
            counts[decision.received.partition] += len(decision.events)
        partitions = sorted(counts)
        published = {number: self._published.get(number, 0) for number in partitions}
        given = [
            {
                "partition": number,
                "epoch": epochs[number],
                "count": counts[number],
                "decided_at": times.get(number),
                "position": self._head(number).position,
                "published": published[number],
            }
            for number in partitions
        ]
        written = (as_json(given), *map(as_json, _rows(decisions)), receipts_checked)
        try:
            rows = await self._kept.fetch(_APPEND, *written)
        except asyncpg.UniqueViolationError as error:
            raise _conflict(error) from error
        if rows and rows[0]["partition"] is None:
            raise DecidedBefore("a command of the batch has a receipt already")
        if not rows:
            raise Fenced(f"one of the partitions {partitions} is not as this worker left it")
        self._note(rows, counts)
        self._note_marked(published)
        return _appended(decisions, rows, self._generations(partitions))

    async def open(self, partition: int) -> Head:
        """Read how far a partition goes that was just taken: from here on its log only grows.

        An append to one that is shorter than what this store has seen of it raises Fenced.
        """
        head = self._heads[partition] = await self.read_head(partition)
        self._published[partition] = head.published_position
        return head

    def _head(self, partition: int) -> Head:
        return self._heads.get(partition, _UNKNOWN)

    def _note(self, rows: Sequence[asyncpg.Record], counts: Mapping[int, int]) -> None:
        """Remember where the logs end now."""
        for row in rows:
            number = row["partition"]
            if number in self._heads:
                reached = row["first_position"] + counts[number] - 1
                self._heads[number] = replace(self._heads[number], position=reached)

    def _generations(self, partitions: Iterable[int]) -> dict[int, int | None]:
        return {number: self._head(number).generation for number in partitions}

    async def read_streams(self, stream_ids: Sequence[str]) -> dict[str, Stream]:
        """Read the states of these patients; one without a history is left out.

        A snapshot that can't be trusted is passed over: that history is read from the start.
        """
        wanted = list(dict.fromkeys(stream_ids))
        streams = await self._read_streams(wanted, FORMAT)
        if distrusted := [
            stream_id for stream_id in wanted if stream_id in streams and streams[stream_id] is None
        ]:
            streams |= await self._read_streams(distrusted, _NO_FORMAT)
        found = {stream_id: stream for stream_id, stream in streams.items() if stream}
        for stream in found.values():
            if stream.unreadable:
                log.error("history.unreadable", reason=stream.unreadable)
        return found

    async def _read_streams(
        self, stream_ids: Sequence[str], snapshot_format: int
    ) -> dict[str, Stream | None]:
        """Read histories by one statement; None for one whose snapshot can't be trusted."""
        if not stream_ids:
            return {}
        rows = await self._kept.fetch(_READ_STREAMS, stream_ids, snapshot_format)
        if sum(len(row["data"]) for row in rows) > REPLAY_IN_THREAD_CHARS:
            return await asyncio.to_thread(_replay_each, rows)  # leases must be renewed meanwhile
        return _replay_each(rows)

    async def write_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a state beside the log, in place of the one before."""
        await self._pool.execute(
            _WRITE_SNAPSHOT,
            snapshot.stream_id,
            snapshot.version,
            FORMAT,
            snapshot.state,
            snapshot.digest,
        )

    async def read_receipts(self, command_ids: Sequence[UUID]) -> dict[UUID, Receipt]:
        """Read what was decided before for these command ids."""
        if not command_ids:
            return {}
        rows = await self._pool.fetch(_READ_RECEIPTS, command_ids)
        return {
            command_id: _receipt(list(group))
            for command_id, group in groupby(rows, key=itemgetter("command_id"))
        }

    async def read_log(
        self, partition: int, after_position: int, most: int, patient_id: str | None = None
    ) -> list[RecordedEvent]:
        """Read what follows a position in a partition's log, or what of it is one patient's."""
        if patient_id is None:
            rows = await self._pool.fetch(_READ_LOG, partition, after_position, most)
        else:
            rows = await self._pool.fetch(_READ_LOG_OF_PATIENT, after_position, most, patient_id)
        return [RecordedEvent(*row) for row in rows]

    async def read_times(self, partitions: Iterable[int]) -> dict[int, datetime]:
        """Read what time it is in the logs of these partitions; it never steps back."""
        rows = await self._pool.fetch(_READ_TIMES, sorted(partitions))
        return {row["partition"]: row["now"] for row in rows}

    async def read_head(self, partition: int) -> Head:
        """Read how far a partition's log goes; a partition that doesn't exist is empty."""
        row = await self._pool.fetchrow(_READ_HEAD, partition)
        if row is None:
            return _UNKNOWN
        began = zip(row["generations"], row["after_positions"], strict=True)
        generations = [GenerationBegan(generation=g, after_position=p) for g, p in began]
        return Head(row["position"], row["published_position"], row["log_id"], generations)

    async def read_server(self) -> tuple[str, int]:
        """Read which server holds the log, and on which timeline it writes."""
        row = await self._pool.fetchrow(_READ_SERVER)
        assert row is not None  # noqa: S101 - it returns one row
        return row["server"], row["timeline"]

    async def begin_generation(self, lease: Lease) -> None:
        """Take the log of a partition that was set back as it is."""
        await self._pool.execute(_BEGIN_GENERATION, lease.partition, lease.epoch)

    def note_published(self, partition: int, position: int) -> None:
        """Note up to where the broker has confirmed a partition's events.

        The next append to it tells the database along with it, or `mark_published` does.
        """
        self._published[partition] = position

    @property
    def unmarked(self) -> int:
        """How many events would go out again if this worker died now."""
        return sum(
            position - self._head(number).published_position
            for number, position in self._published.items()
        )

    async def mark_published(self, epochs: Mapping[int, int]) -> None:
        """Have the database remember what the broker has confirmed, for partitions still owned."""
        moved = {
            number: position
            for number, position in self._published.items()
            if number in epochs and position > self._head(number).published_position
        }
        if not moved:
            return
        owned = [epochs[number] for number in moved]
        await self._pool.execute(_MARK_PUBLISHED, list(moved), owned, list(moved.values()))
        self._note_marked(moved)

    def _note_marked(self, published: Mapping[int, int]) -> None:
        """Remember what the database knows now of what is published."""
        for number, position in published.items():
            head = self._heads.get(number)
            if head and position > head.published_position:
                self._heads[number] = replace(head, published_position=position)


def _conflict(error: asyncpg.UniqueViolationError) -> Exception:
    kind = _CONFLICTS.get(error.constraint_name or "")
    return kind("another writer was first") if kind else error


def _rows(decisions: Sequence[Decision]) -> tuple[list[Row], list[Row], list[Row]]:
    """Make the rows of events, receipts and ends."""
    events: list[Row] = []
    receipts: list[Row] = []
    ends: list[Row] = []
    ordinals = Counter[int]()
    for decision in decisions:
        partition = decision.received.partition
        receipts.append(_receipt_row(decision, ordinals[partition] + 1))
        for new in decision.events:
            ordinals[partition] += 1
            events.append(_event_row(decision.received, new, ordinals[partition]))
            if isinstance(new.event, ConsentGranted) and new.event.expires_at is not None:
                end, stream_id = new.event.expires_at, new.event.patient_id
                ends.append({"partition": partition, "expires_at": end, "stream_id": stream_id})
    return events, receipts, ends


def _event_row(received: Received | EndsCame, new: NewEvent, ordinal: int) -> Row:
    return {
        "partition": received.partition,
        "ordinal": ordinal,
        "stream_id": received.patient_id,
        "stream_version": new.version,
        "event_id": str(new.id),
        "type": type(new.event).__name__,
        "schema_version": new.event.schema_version,
        "data": new.data,
        "correlation_id": received.correlation_id,
        "causation_id": str(received.command_id),
        "issued_by": received.issued_by,
        "traceparent": received.traceparent,
        "tracestate": received.tracestate,
    }


def _receipt_row(decision: Decision, first_ordinal: int) -> Row:
    received, rejection = decision.received, decision.rejection
    row = {
        "command_id": str(received.command_id),
        "fingerprint": f"\\x{received.fingerprint.hex()}",
        "patient_id": received.patient_id,
        "partition": received.partition,
        "stream_version": decision.version,
        "event_count": len(decision.events),
    }
    if rejection is None:
        return row | {"first_ordinal": first_ordinal}
    details = _DETAILS.dump_json(rejection.details).decode() if rejection.details else None
    return row | {"error": rejection.error, "message": rejection.message, "details": details}


def _appended(
    decisions: Sequence[Decision],
    rows: Sequence[asyncpg.Record],
    generations: Mapping[int, int | None],
) -> Appended:
    """Give the decided events the positions and times that the log gave them."""
    next_position = {row["partition"]: row["first_position"] for row in rows}
    recorded_at = {row["partition"]: row["recorded_at"] for row in rows}
    events: list[RecordedEvent] = []
    decided: dict[UUID, tuple[Decision, Sequence[RecordedEvent]]] = {}
    for decision in decisions:
        partition = decision.received.partition
        recorded = _recorded(
            decision, next_position[partition], recorded_at[partition], generations[partition]
        )
        next_position[partition] += len(recorded)
        events += recorded
        decided[decision.received.command_id] = decision, recorded
    return Appended(events, decided)


def _recorded(
    decision: Decision, first_position: int, recorded_at: datetime, generation: int | None
) -> list[RecordedEvent]:
    received = decision.received
    recorded: list[RecordedEvent] = []
    for position, new in enumerate(decision.events, start=first_position):
        fresh = FreshEvent(
            partition=received.partition,
            position=position,
            stream_id=received.patient_id,
            stream_version=new.version,
            event_id=new.id,
            type=type(new.event).__name__,
            schema_version=new.event.schema_version,
            data=new.data,
            recorded_at=recorded_at,
            correlation_id=received.correlation_id,
            causation_id=received.command_id,
            issued_by=received.issued_by,
            traceparent=received.traceparent,
            tracestate=received.tracestate,
            generation=generation,
        )
        fresh.event = new.event
        recorded.append(fresh)
    return recorded


def _outcome(decision: Decision, recorded: Sequence[RecordedEvent]) -> Outcome:
    received, rejection = decision.received, decision.rejection
    command_id, patient_id = str(received.command_id), received.patient_id
    if rejection:
        return CommandRejected(
            command_id=command_id,
            patient_id=patient_id,
            error=rejection.error,
            message=rejection.message,
            details=list(rejection.details),
        )
    return CommandAccepted(
        command_id=command_id,
        patient_id=patient_id,
        partition=received.partition,
        version=decision.version,
        events=[
            EventSummary(
                id=str(event.event_id),
                type=event.type,
                target=new.event.target,
                version=event.stream_version,
                position=event.position,
            )
            for event, new in zip(recorded, decision.events, strict=True)
        ],
    )


def _replay_each(rows: Sequence[asyncpg.Record]) -> dict[str, Stream | None]:
    return {
        stream_id: _replayed(list(history))
        for stream_id, history in groupby(rows, key=itemgetter("stream_id"))
    }


def _replayed(history: Sequence[asyncpg.Record]) -> Stream | None:
    try:
        return replay(history)
    except SnapshotError as error:
        log.warning("snapshot.ignored", reason=str(error))
        return None


def _receipt(rows: Sequence[asyncpg.Record]) -> Receipt:
    """Rebuild an outcome from a receipt, joined with the events that it points at."""
    first = rows[0]
    command_id, patient_id = str(first["command_id"]), first["patient_id"]
    outcome: Outcome
    try:
        if first["error"]:
            outcome = _rejected(command_id, patient_id, first)
        else:
            outcome = _accepted(command_id, patient_id, rows)
    except (UnknownEventError, ValidationError):
        reason = "what this command came to is of a newer version"
        outcome = unreadable_history(command_id, patient_id, reason)
    return Receipt(first["fingerprint"], outcome)


def _rejected(command_id: str, patient_id: str, row: asyncpg.Record) -> CommandRejected:
    return CommandRejected(
        command_id=command_id,
        patient_id=patient_id,
        error=row["error"],
        message=row["message"],
        details=list(_DETAILS.validate_json(row["details"] or "[]")),
    )


def _accepted(command_id: str, patient_id: str, rows: Sequence[asyncpg.Record]) -> CommandAccepted:
    return CommandAccepted(
        command_id=command_id,
        patient_id=patient_id,
        partition=rows[0]["partition"],
        version=rows[0]["version"],
        events=[_summary(row) for row in rows],
    )


def _summary(row: asyncpg.Record) -> EventSummary:
    event = read_event(row["type"], row["schema_version"], from_json(row["data"]))
    return EventSummary(
        id=str(row["event_id"]),
        type=row["type"],
        target=event.target,
        version=row["stream_version"],
        position=row["position"],
    )
