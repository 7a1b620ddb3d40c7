"""The aggregate: what a patient has granted, and which commands that state allows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Final, assert_never

from command_service.persistent_map import PersistentMap
from shared.commands import AskConsent, ConsentCommand, GrantConsent, RevokeConsent
from shared.events import ConsentAsked, ConsentEvent, ConsentGranted, ConsentRevoked
from shared.replies import Refusal
from shared.vocabulary import Grantee, RecordType, Target, record_types

NOTHING: Final[frozenset[RecordType]] = frozenset()


class Refused(Exception):
    """The rules say no.

    Refused
    ├── ConsentAlreadyGranted   nothing is left to ask for or to grant
    └── ConsentNotGranted       nothing is there to revoke
    """

    error: Refusal


class ConsentAlreadyGranted(Refused):
    """The grantee already has all that was asked for or granted."""

    error: Refusal = "consent_already_granted"

    def __init__(self, grantee: Grantee, target: Target) -> None:
        super().__init__(f"{grantee} already has consent to {_named(target)}")


class ConsentNotGranted(Refused):
    """The grantee has nothing of what was to be revoked."""

    error: Refusal = "consent_not_granted"

    def __init__(self, grantee: Grantee, target: Target) -> None:
        super().__init__(f"{grantee} has no consent to {_named(target)}")


@dataclass(frozen=True, slots=True)
class Patient:
    """For each grantee the record types granted; a grantee with none is not kept."""

    granted: PersistentMap[Grantee, frozenset[RecordType]] = field(default_factory=PersistentMap)

    def granted_to(self, grantee: Grantee) -> frozenset[RecordType]:
        """Every record type that the grantee may see now."""
        return self.granted.get(grantee, NOTHING)

    def with_grant(self, grantee: Grantee, record_type: RecordType) -> "Patient":
        """Return the patient with one record type more granted."""
        types = self.granted_to(grantee) | {record_type}
        return Patient(self.granted.with_entry(grantee, types))

    def without_grant(self, grantee: Grantee, record_type: RecordType) -> "Patient":
        """Return the patient with one record type less granted."""
        types = self.granted_to(grantee) - {record_type}
        if types:
            return Patient(self.granted.with_entry(grantee, types))
        return Patient(self.granted.without(grantee))


INITIAL: Final = Patient()


def evolve(state: Patient, event: ConsentEvent) -> Patient:
    """Apply one recorded fact. Never refuses: it already happened."""
    match event:
        case ConsentAsked():
            return state
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

    Raises Refused when the rules forbid it.
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
    return [
        ConsentAsked(
            patient_id=command.patient_id,
            by_entity=command.by_entity,
            by_id=command.by_id,
            target=record_type,
        )
        for record_type in _not_yet_granted(state, command)
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
