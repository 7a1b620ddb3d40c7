"""What the senders of commands are told: as it was just decided, or as a receipt keeps it. Pure."""

from collections.abc import Sequence
from typing import Final

import asyncpg
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from command_service.domain.decisions import Decision, Receipt, unreadable_history
from command_service.store.recorded_event import RecordedEvent
from shared.messages.events import UnknownEventError, read_event
from shared.messages.replies import (
    CommandAccepted,
    CommandRejected,
    Detail,
    EventSummary,
    Outcome,
)

DETAILS: Final[TypeAdapter[tuple[Detail, ...]]] = TypeAdapter(tuple[Detail, ...])


def outcome_of(decision: Decision, recorded: Sequence[RecordedEvent]) -> Outcome:
    """Write what the sender of a command is told, from what was just decided."""
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


def read_receipt(rows: Sequence[asyncpg.Record]) -> Receipt:
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
        details=list(DETAILS.validate_json(row["details"] or "[]")),
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
