"""The aggregate: what a patient has granted and is asked for, and which commands that allows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Final, assert_never

from immutables import Map

from shared.messages.commands import AskConsent, ConsentCommand, GrantConsent, RevokeConsent
from shared.messages.events import ConsentAsked, ConsentEvent, ConsentGranted, ConsentRevoked
from shared.messages.replies import RejectionCode
from shared.values.vocabulary import Grantee, RecordType, Target, record_types

NOTHING: Final[frozenset[RecordType]] = frozenset()
MOST_REQUESTS: Final = 1_000
"""How many may wait for one patient's answer at a time: a list that a person can still read."""

Types = Map[Grantee, frozenset[RecordType]]
"""By grantee, record types; a grantee with none is not kept."""


class Rejected(Exception):
    """The rules say no.

    Rejected
    ├── ConsentAlreadyGranted   nothing is left to ask for or to grant
    ├── ConsentNotGranted       nothing is there to revoke
    └── TooManyRequests         too many others wait for the patient's answer
    """

    error: RejectionCode


class ConsentAlreadyGranted(Rejected):
    """The grantee already has all that was asked for or granted."""

    error: RejectionCode = "consent_already_granted"

    def __init__(self, grantee: Grantee, target: Target) -> None:
        super().__init__(f"{grantee} already has consent to {_named(target)}")


class ConsentNotGranted(Rejected):
    """The grantee has nothing of what was to be revoked."""

    error: RejectionCode = "consent_not_granted"

    def __init__(self, grantee: Grantee, target: Target) -> None:
        super().__init__(f"{grantee} has no consent to {_named(target)}")


class TooManyRequests(Rejected):
    """Another request would drown the patient in them."""

    error: RejectionCode = "too_many_requests"

    def __init__(self) -> None:
        super().__init__(
            f"{MOST_REQUESTS} others wait for this patient's answer already: "
            "ask again when some of them have it"
        )


@dataclass(frozen=True, slots=True)
class Patient:
    """What is granted to whom, and who waits for what."""

    granted: Types = field(default_factory=Map)
    requested: Types = field(default_factory=Map)
    """What was asked for and not granted since; the oldest and the newest request alike."""

    def granted_to(self, grantee: Grantee) -> frozenset[RecordType]:
        """Every record type that the grantee may see now."""
        return self.granted.get(grantee, NOTHING)

    def with_request(self, grantee: Grantee, record_type: RecordType) -> "Patient":
        """Return the patient with one record type more asked for."""
        return Patient(self.granted, _with(self.requested, grantee, record_type))

    def with_grant(self, grantee: Grantee, record_type: RecordType) -> "Patient":
        """Return the patient with one record type more granted, which answers who asked for it."""
        return Patient(
            _with(self.granted, grantee, record_type),
            _without(self.requested, grantee, record_type),
        )

    def without_grant(self, grantee: Grantee, record_type: RecordType) -> "Patient":
        """Return the patient with one record type less granted."""
        return Patient(_without(self.granted, grantee, record_type), self.requested)


def _with(map_: Types, grantee: Grantee, record_type: RecordType) -> Types:
    types = map_.get(grantee, NOTHING)
    return map_ if record_type in types else map_.set(grantee, types | {record_type})


def _without(map_: Types, grantee: Grantee, record_type: RecordType) -> Types:
    types = map_.get(grantee, NOTHING)
    if record_type not in types:
        return map_
    left = types - {record_type}
    return map_.set(grantee, left) if left else map_.delete(grantee)


INITIAL: Final = Patient()


def evolve(state: Patient, event: ConsentEvent) -> Patient:
    """Apply one recorded fact. Never refuses: it already happened."""
    match event:
        case ConsentAsked():
            return state.with_request(event.grantee, event.target)
        case ConsentGranted():
            return state.with_grant(event.grantee, event.target)
        case ConsentRevoked():
            return state.without_grant(event.grantee, event.target)
        case _:
            assert_never(event)


def fold(state: Patient, events: Iterable[ConsentEvent]) -> Patient:
    """Apply recorded facts in their order."""
    return reduce(evolve, events, state)


def decide(state: Patient, command: ConsentCommand) -> list[ConsentEvent]:
    """Return the events that a command causes in this state, at least one.

    Raises Rejected when the rules forbid it.
    """
    match command:
        case AskConsent():
            return _ask(state, command)
        case GrantConsent():
            return _grant(state, command)
        case RevokeConsent():
            return _revoke(state, command)
        case _:
            assert_never(command)


def _ask(state: Patient, command: AskConsent) -> list[ConsentEvent]:
    missing = _not_yet_granted(state, command)
    if command.grantee not in state.requested and len(state.requested) >= MOST_REQUESTS:
        raise TooManyRequests
    return [
        ConsentAsked(
            patient_id=command.patient_id,
            by_entity=command.by_entity,
            by_id=command.by_id,
            target=record_type,
        )
        for record_type in missing
    ]


def _grant(state: Patient, command: GrantConsent) -> list[ConsentEvent]:
    return [
        ConsentGranted(
            patient_id=command.patient_id,
            to_entity=command.to_entity,
            to_id=command.to_id,
            target=record_type,
        )
        for record_type in _not_yet_granted(state, command)
    ]


def _revoke(state: Patient, command: RevokeConsent) -> list[ConsentEvent]:
    granted = state.granted_to(command.grantee)
    to_revoke = [named for named in record_types(command.target) if named in granted]
    if not to_revoke:
        raise ConsentNotGranted(command.grantee, command.target)
    return [
        ConsentRevoked(
            patient_id=command.patient_id,
            from_entity=command.from_entity,
            from_id=command.from_id,
            target=record_type,
        )
        for record_type in to_revoke
    ]


def _not_yet_granted(state: Patient, command: AskConsent | GrantConsent) -> list[RecordType]:
    granted = state.granted_to(command.grantee)
    missing = [named for named in record_types(command.target) if named not in granted]
    if not missing:
        raise ConsentAlreadyGranted(command.grantee, command.target)
    return missing


def _named(target: Target) -> str:
    return "all records" if target == "all" else target
