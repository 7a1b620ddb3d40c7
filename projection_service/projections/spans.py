"""The history: when each consent was in force, and when it was asked for. Pure."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, NamedTuple, assert_never
from uuid import UUID

from pydantic import TypeAdapter

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
from shared.values.vocabulary import Entity, Grantee, RecordType

Kind = Literal["period", "request"]
"""A period lasts from a grant until it is revoked, extended or at its end; a request from its ask
until it is granted, denied or withdrawn."""


class Cause(NamedTuple):
    """When a span began or ended, and through what."""

    version: int
    """The patient's; it orders what has the same time."""
    at: datetime
    command_id: UUID
    issued_by: str | None
    event_id: UUID


How = Literal["expired", "extended", "denied", "withdrawn"]
"""How a span ended, where it was not by a revoke, or by the grant that answers a request."""


class Ending(NamedTuple):
    """When a span ended, through what, and how."""

    cause: Cause
    how: How | None = None


class Matter(NamedTuple):
    """What a period or a request is about."""

    patient_id: str
    entity_name: Entity
    entity_id: str
    record_type: RecordType
    kind: Kind


Whose = tuple[str, Entity, str, RecordType]
"""A matter of either kind."""

_read_uuid: Final = TypeAdapter(UUID).validator.validate_python
"""Reads one in a sixth of the time that the standard library takes, or the adapter itself."""


@dataclass(slots=True)
class Span:
    """A period or a request."""

    matter: Matter
    began: Cause
    ended: Ending | None = None
    expires_at: datetime | None = None
    """When it ends by itself, or is asked to."""


@dataclass(slots=True)
class Spans:
    """What a batch of events does to the history."""

    begun: list[Span] = field(default_factory=list)
    ended: dict[Matter, Ending] = field(default_factory=dict)
    """How what was open before the batch ends."""
    _open: dict[Matter, list[Span]] = field(default_factory=dict)
    """What has begun in the batch and not ended."""

    def apply(
        self,
        patient_id: str,
        grantee: Grantee,
        event: ConsentEvent,
        change: Cause,
        *,
        stored: Consent,
        before: Consent,
    ) -> None:
        """Apply an event to a consent, as it was stored and as the batch has left it before.

        A grant that adds nothing begins nothing, a revoke of what is not granted ends nothing:
        so at every moment exactly that is in force which the events up to it have granted, and
        whose end has not come.
        """
        target = event.target
        whose = (patient_id, *grantee, target)
        match event:
            case ConsentAsked():
                self._begin(Matter(*whose, "request"), change, event.expires_at)
            case ConsentGranted():
                if target not in before.permissions or event.expires_at != before.ends.get(target):
                    self._close(whose, change, "extended", stored, before)
                    self._begin(Matter(*whose, "period"), change, event.expires_at)
                self._answer(whose, change, None, stored, before)
            case ConsentRevoked():
                self._close(whose, change, None, stored, before)
            case ConsentExpired():
                if before.ends.get(target) == event.expires_at:
                    self._close(whose, change, "expired", stored, before)
            case ConsentDenied():
                self._answer(whose, change, "denied", stored, before)
            case RequestWithdrawn():
                self._answer(whose, change, "withdrawn", stored, before)
            case _:
                assert_never(event)

    def _close(
        self, whose: Whose, change: Cause, how: How | None, stored: Consent, before: Consent
    ) -> None:
        record_type = whose[-1]
        if record_type in before.permissions:
            ending = _ending(before, record_type, change, how)
            self._end(Matter(*whose, "period"), ending, record_type in stored.permissions)

    def _answer(
        self, whose: Whose, change: Cause, how: How | None, stored: Consent, before: Consent
    ) -> None:
        record_type = whose[-1]
        if record_type in before.requested:
            matter = Matter(*whose, "request")
            self._end(matter, Ending(change, how), record_type in stored.requested)

    def _begin(self, matter: Matter, change: Cause, expires_at: datetime | None) -> None:
        span = Span(matter, change, expires_at=expires_at)
        self.begun.append(span)
        self._open.setdefault(matter, []).append(span)

    def _end(self, matter: Matter, ending: Ending, was_stored: bool) -> None:
        for span in self._open.pop(matter, ()):
            span.ended = ending
        if was_stored:
            self.ended.setdefault(matter, ending)


def _ending(consent: Consent, target: RecordType, change: Cause, how: How | None) -> Ending:
    """Say how a period ends: by itself, where its end had come before the change was recorded."""
    end = consent.ends.get(target)
    if end is None or change.at < end:
        return Ending(change, how)
    return Ending(change._replace(at=end), "expired")


@lru_cache(maxsize=64)
def _moment(time: str) -> datetime | None:
    """Read a time; None where it has no zone. What was recorded together has the same one."""
    at = datetime.fromisoformat(time)
    return None if at.tzinfo is None else at.astimezone(UTC)


def change_of(event: CloudEvent) -> Cause | str:
    """Read when and through what an event happened, or say why that can't be kept."""
    try:
        at = _moment(event.time)
        if at is None:
            return "its time has no zone"
        change = Cause(
            event.streamversion,
            at,
            _read_uuid(event.causationid),
            event.issuedby,
            _read_uuid(event.id),
        )
    except (ValueError, OverflowError):
        return "its time, its id or its causation id is none"
    if change.issued_by is not None and "\x00" in change.issued_by:
        return "its issuer is not text that can be kept"
    return change
