"""The history: when each consent was in force, and when it was asked for. Pure."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple, assert_never
from uuid import UUID

from projection_service.projections.consents import Consent
from shared.messages.cloud_event import CloudEvent
from shared.messages.events import (
    ConsentAsked,
    ConsentDenied,
    ConsentEvent,
    ConsentExpired,
    ConsentGranted,
    ConsentRevoked,
    RequestWithdrawn,
)
from shared.values.vocabulary import Entity, RecordType

Kind = Literal["period", "request"]
"""A period lasts from a grant to its revoke; a request from its ask to the grant that answers."""


class Cause(NamedTuple):
    """When a span began or ended, and through what."""

    version: int
    """The patient's; it orders what has the same time."""
    at: datetime
    command_id: UUID
    issued_by: str | None


class Matter(NamedTuple):
    """What a period or a request is about."""

    patient_id: str
    entity_name: Entity
    entity_id: str
    record_type: RecordType
    kind: Kind


@dataclass(slots=True)
class Span:
    """A period or a request."""

    matter: Matter
    began: Cause
    ended: Cause | None = None


@dataclass(slots=True)
class Spans:
    """What a batch of events does to the history."""

    begun: list[Span] = field(default_factory=list)
    ended: dict[Matter, Cause] = field(default_factory=dict)
    """How what was open before the batch ends."""
    _open: dict[Matter, list[Span]] = field(default_factory=dict)
    """What has begun in the batch and not ended."""

    def apply(
        self,
        patient_id: str,
        event: ConsentEvent,
        change: Cause,
        *,
        stored: Consent,
        before: Consent,
    ) -> None:
        """Apply an event to a consent, as it was stored and as the batch has left it before.

        A grant of what is granted begins nothing, a revoke of what is not ends nothing:
        so at every moment exactly that is in force which the events up to it have granted.
        """
        target = event.target
        whose = (patient_id, *event.grantee, target)
        match event:
            case ConsentAsked():
                self._begin(Matter(*whose, "request"), change)
            case ConsentGranted():
                if target not in before.permissions:
                    self._begin(Matter(*whose, "period"), change)
                if target in before.requested:
                    self._end(Matter(*whose, "request"), change, target in stored.requested)
            case ConsentRevoked() | ConsentExpired():
                if target in before.permissions:
                    self._end(Matter(*whose, "period"), change, target in stored.permissions)
            case ConsentDenied() | RequestWithdrawn():
                if target in before.requested:
                    self._end(Matter(*whose, "request"), change, target in stored.requested)
            case _:
                assert_never(event)

    def _begin(self, matter: Matter, change: Cause) -> None:
        span = Span(matter, change)
        self.begun.append(span)
        self._open.setdefault(matter, []).append(span)

    def _end(self, matter: Matter, change: Cause, was_stored: bool) -> None:
        for span in self._open.pop(matter, ()):
            span.ended = change
        if was_stored:
            self.ended.setdefault(matter, change)


def change_of(event: CloudEvent) -> Cause | str:
    """Read when and through what an event happened, or say why that can't be kept."""
    try:
        at = datetime.fromisoformat(event.time)
        if at.tzinfo is None:
            return "its time has no zone"
        change = Cause(
            event.streamversion, at.astimezone(UTC), UUID(event.causationid), event.issuedby
        )
    except (ValueError, OverflowError):
        return "its time or its causation id is none"
    if change.issued_by is not None and "\x00" in change.issued_by:
        return "its issuer is not text that can be kept"
    return change
