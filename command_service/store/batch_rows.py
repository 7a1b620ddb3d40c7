"""What a batch is written as, and what it became in the log. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from command_service.domain.decisions import Decision, NewEvent
from command_service.domain.received import EndsCame, Received
from command_service.store.outcomes import DETAILS, outcome_of
from command_service.store.recorded_event import FreshEvent, RecordedEvent
from shared.messages.events import ConsentGranted
from shared.messages.replies import Outcome
from shared.postgres.statements import Row


@dataclass(frozen=True, slots=True)
class Appended:
    """What a batch became in the log."""

    events: Sequence[RecordedEvent]
    decided: Mapping[UUID, tuple[Decision, Sequence[RecordedEvent]]]
    """By command id: what was decided, and the events that it became."""

    def outcome(self, command_id: UUID) -> Outcome:
        """Write what the sender of a command is told."""
        return outcome_of(*self.decided[command_id])


def rows_of(decisions: Sequence[Decision]) -> tuple[list[Row], list[Row], list[Row]]:
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
    details = DETAILS.dump_json(rejection.details).decode() if rejection.details else None
    return row | {"error": rejection.error, "message": rejection.message, "details": details}


def appended(
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
