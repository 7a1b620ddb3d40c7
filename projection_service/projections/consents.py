"""The projection: what one grantee may see of one patient, and has asked to see. Pure."""

from dataclasses import dataclass
from typing import Final, assert_never

from shared.messages.events import (
    ConsentAsked,
    ConsentDenied,
    ConsentEvent,
    ConsentExpired,
    ConsentGranted,
    ConsentRevoked,
    RequestWithdrawn,
)
from shared.values.vocabulary import RecordType, Target, record_types


@dataclass(frozen=True, slots=True)
class Consent:
    """What is granted, and what is asked for and not yet answered by a grant."""

    permissions: frozenset[RecordType] = frozenset()
    requested: frozenset[RecordType] = frozenset()

    def allows(self, target: Target) -> bool:
        """Whether every record type that the target names is granted."""
        return self.permissions.issuperset(record_types(target))


NOTHING: Final = Consent()


def evolve(consent: Consent, event: ConsentEvent) -> Consent:
    """Apply one recorded fact. Applying it twice equals applying it once."""
    match event:
        case ConsentAsked():
            return Consent(consent.permissions, consent.requested | {event.target})
        case ConsentGranted():
            return Consent(consent.permissions | {event.target}, consent.requested - {event.target})
        case ConsentRevoked() | ConsentExpired():
            return Consent(consent.permissions - {event.target}, consent.requested)
        case ConsentDenied() | RequestWithdrawn():
            return Consent(consent.permissions, consent.requested - {event.target})
        case _:
            assert_never(event)
