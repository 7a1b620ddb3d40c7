"""The aggregate: what a patient has granted and is asked for, and which commands that allows.

*Now* is a part of the facts: what has an end is granted while now is before it. That the end has
come is recorded as well, by `expire`, but nothing waits for it to be right.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import reduce
from typing import Final, NamedTuple, assert_never

from immutables import Map

from command_service.domain.rejections import (
    ConsentAlreadyGranted,
    ConsentNotGranted,
    ConsentNotRequested,
    ExpiryNotInTheFuture,
    GrantTooLong,
    TooManyRequests,
)
from shared.messages.commands import (
    AskConsent,
    ConsentCommand,
    DenyConsent,
    GrantConsent,
    RevokeConsent,
    WithdrawRequest,
)
from shared.messages.events import (
    ConsentAsked,
    ConsentDenied,
    ConsentEvent,
    ConsentExpired,
    ConsentGranted,
    ConsentRevoked,
    RequestWithdrawn,
)
from shared.values.vocabulary import RECORD_TYPES, Grantee, RecordType, record_types

NOTHING: Final[frozenset[RecordType]] = frozenset()
MOST_REQUESTS: Final = 1_000
"""How many may wait for one patient's answer at a time: a list that a person can still read."""

Types = Map[Grantee, frozenset[RecordType]]
"""By grantee, record types; a grantee with none is not kept."""


class Subject(NamedTuple):
    """What a grant is about: whose it is, and of which records."""

    grantee: Grantee
    record_type: RecordType


Ends = Map[Subject, datetime]


@dataclass(frozen=True, slots=True)
class Patient:
    """What is granted to whom, until when, and who waits for what."""

    granted: Types = field(default_factory=Map)
    """What was granted and neither revoked nor recorded as expired since."""
    requested: Types = field(default_factory=Map)
    """What was asked for and not answered since; the oldest and the newest request alike."""
    ends: Ends = field(default_factory=Map)
    """The end of what is granted, where it has one."""
    next_end: datetime | None = None
    """The first of the ends."""

    def holds(self, subject: Subject, now: datetime) -> bool:
        """Whether this is granted, and its end has not come."""
        if subject.record_type not in self.granted.get(subject.grantee, NOTHING):
            return False
        end = self.ends.get(subject)
        return end is None or now < end

    def with_request(self, subject: Subject) -> "Patient":
        """Return the patient with one record type more asked for."""
        return Patient(self.granted, _with(self.requested, subject), self.ends, self.next_end)

    def without_request(self, subject: Subject) -> "Patient":
        """Return the patient with one record type less asked for."""
        return Patient(self.granted, _without(self.requested, subject), self.ends, self.next_end)

    def with_grant(self, subject: Subject, end: datetime | None) -> "Patient":
        """Return the patient with this granted until its end, which answers who asked for it."""
        granted, requested = _with(self.granted, subject), _without(self.requested, subject)
        if end is None:
            return Patient(granted, requested, *self._ends_without(subject))
        ends = self.ends.set(subject, end)
        return Patient(granted, requested, ends, min(end, self._ends_without(subject)[1] or end))

    def without_grant(self, subject: Subject) -> "Patient":
        """Return the patient with one record type less granted."""
        granted = _without(self.granted, subject)
        return Patient(granted, self.requested, *self._ends_without(subject))

    def _ends_without(self, subject: Subject) -> tuple[Ends, datetime | None]:
        end = self.ends.get(subject)
        if end is None:
            return self.ends, self.next_end
        ends = self.ends.delete(subject)
        if end != self.next_end:
            return ends, self.next_end
        return ends, min(ends.values(), default=None)


def _with(map_: Types, subject: Subject) -> Types:
    types = map_.get(subject.grantee, NOTHING)
    if subject.record_type in types:
        return map_
    return map_.set(subject.grantee, types | {subject.record_type})


def _without(map_: Types, subject: Subject) -> Types:
    types = map_.get(subject.grantee, NOTHING)
    if subject.record_type not in types:
        return map_
    left = types - {subject.record_type}
    return map_.set(subject.grantee, left) if left else map_.delete(subject.grantee)


INITIAL: Final = Patient()


def evolve(state: Patient, event: ConsentEvent) -> Patient:
    """Apply one recorded fact. Never refuses: it already happened."""
    subject = Subject(event.grantee, event.target)
    match event:
        case ConsentAsked():
            return state.with_request(subject)
        case ConsentGranted():
            return state.with_grant(subject, event.expires_at)
        case ConsentRevoked():
            return state.without_grant(subject)
        case ConsentExpired():
            stands = state.ends.get(subject) == event.expires_at
            return state.without_grant(subject) if stands else state
        case ConsentDenied() | RequestWithdrawn():
            return state.without_request(subject)
        case _:
            assert_never(event)


def fold(state: Patient, events: Iterable[ConsentEvent]) -> Patient:
    """Apply recorded facts in their order."""
    return reduce(evolve, events, state)


def expire(state: Patient, patient_id: str, now: datetime) -> list[ConsentEvent]:
    """Return an event for each end that has come and still stands, the earliest first."""
    if state.next_end is None or now < state.next_end:
        return []
    due = sorted(
        ((end, subject) for subject, end in state.ends.items() if end <= now),
        key=lambda each: (each[0], each[1].grantee, RECORD_TYPES.index(each[1].record_type)),
    )
    return [
        ConsentExpired(
            patient_id=patient_id,
            to_entity=subject.grantee.entity,
            to_id=subject.grantee.id,
            target=subject.record_type,
            expires_at=end,
        )
        for end, subject in due
    ]


def decide(
    state: Patient, command: ConsentCommand, now: datetime, longest_grant: timedelta | None = None
) -> list[ConsentEvent]:
    """Return the events that a command causes in this state at this time, at least one.

    Raises Rejected when the rules forbid it; `longest_grant` is one of them where it is given.
    """
    match command:
        case AskConsent():
            return _ask(state, command, _gained(state, command, now, longest_grant))
        case GrantConsent():
            return _grant(command, _gained(state, command, now, longest_grant))
        case RevokeConsent():
            return _revoke(state, command, now)
        case DenyConsent():
            return _deny(state, command)
        case WithdrawRequest():
            return _withdraw(state, command)
        case _:
            assert_never(command)


def _gained(
    state: Patient,
    command: AskConsent | GrantConsent,
    now: datetime,
    longest_grant: timedelta | None,
) -> list[RecordType]:
    """List the record types to which a grant of these terms adds something.

    It adds the time until its end, and never takes any: an earlier end than what stands adds
    nothing.
    """
    end = command.expires_at
    if end is not None and end <= now:
        raise ExpiryNotInTheFuture(end)
    if longest_grant is not None and (end is None or end - now > longest_grant):
        raise GrantTooLong(longest_grant)
    named = [Subject(command.grantee, each) for each in record_types(command.target)]
    gained = [
        subject.record_type
        for subject in named
        if not state.holds(subject, now) or _is_later(end, state.ends.get(subject))
    ]
    if not gained:
        standing = {each.record_type: state.ends[each] for each in named if each in state.ends}
        raise ConsentAlreadyGranted(command.grantee, command.target, standing)
    return gained


def _is_later(end: datetime | None, standing: datetime | None) -> bool:
    """Whether an end comes after the one that stands; none is later than any."""
    return standing is not None and (end is None or end > standing)


def _ask(state: Patient, command: AskConsent, gained: Iterable[RecordType]) -> list[ConsentEvent]:
    if command.grantee not in state.requested and len(state.requested) >= MOST_REQUESTS:
        raise TooManyRequests(MOST_REQUESTS)
    return [
        ConsentAsked(
            patient_id=command.patient_id,
            by_entity=command.by_entity,
            by_id=command.by_id,
            target=record_type,
            expires_at=command.expires_at,
        )
        for record_type in gained
    ]


def _grant(command: GrantConsent, gained: Iterable[RecordType]) -> list[ConsentEvent]:
    return [
        ConsentGranted(
            patient_id=command.patient_id,
            to_entity=command.to_entity,
            to_id=command.to_id,
            target=record_type,
            expires_at=command.expires_at,
        )
        for record_type in gained
    ]


def _revoke(state: Patient, command: RevokeConsent, now: datetime) -> list[ConsentEvent]:
    held = [
        record_type
        for record_type in record_types(command.target)
        if state.holds(Subject(command.grantee, record_type), now)
    ]
    if not held:
        raise ConsentNotGranted(command.grantee, command.target)
    return [
        ConsentRevoked(
            patient_id=command.patient_id,
            from_entity=command.from_entity,
            from_id=command.from_id,
            target=record_type,
        )
        for record_type in held
    ]


def _deny(state: Patient, command: DenyConsent) -> list[ConsentEvent]:
    return [
        ConsentDenied(
            patient_id=command.patient_id,
            to_entity=command.to_entity,
            to_id=command.to_id,
            target=record_type,
        )
        for record_type in _requested(state, command)
    ]


def _withdraw(state: Patient, command: WithdrawRequest) -> list[ConsentEvent]:
    return [
        RequestWithdrawn(
            patient_id=command.patient_id,
            by_entity=command.by_entity,
            by_id=command.by_id,
            target=record_type,
        )
        for record_type in _requested(state, command)
    ]


def _requested(state: Patient, command: DenyConsent | WithdrawRequest) -> list[RecordType]:
    requested = state.requested.get(command.grantee, NOTHING)
    named = [each for each in record_types(command.target) if each in requested]
    if not named:
        raise ConsentNotRequested(command.grantee, command.target)
    return named
