"""The projection: what one grantee may see of one patient, and has asked to see. Pure."""

from datetime import datetime
from typing import Final, NamedTuple, assert_never

from immutables import Map

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

Ends = Map[RecordType, datetime]
"""When what has an end comes to it."""
NO_ENDS: Final[Ends] = Map()


class Consent(NamedTuple):
    """What is granted, and what is asked for and not yet answered, with the ends of both.

    What has come to its end is granted still, until that is recorded: whoever answers compares.
    """

    permissions: frozenset[RecordType] = frozenset()
    requested: frozenset[RecordType] = frozenset()
    ends: Ends = NO_ENDS
    requested_ends: Ends = NO_ENDS
    """The ends that are asked for, by the newest request of each."""

    def allows(self, target: Target) -> bool:
        """Whether every record type that the target names is granted."""
        return self.permissions.issuperset(record_types(target))

    def valid_until(self, target: Target) -> datetime | None:
        """Return the first of the ends of what the target names."""
        ends = [self.ends[named] for named in record_types(target) if named in self.ends]
        return min(ends, default=None)


NOTHING: Final = Consent()


def evolve(consent: Consent, event: ConsentEvent) -> Consent:
    """Apply one recorded fact. Applying it twice equals applying it once."""
    target = event.target
    match event:
        case ConsentAsked():
            return _with_request(consent, target, event.expires_at)
        case ConsentGranted():
            return Consent(
                consent.permissions | {target},
                consent.requested - {target},
                _with(consent.ends, target, event.expires_at),
                _with(consent.requested_ends, target, None),
            )
        case ConsentRevoked():
            return _without_grant(consent, target)
        case ConsentExpired():
            stands = consent.ends.get(target) == event.expires_at
            return _without_grant(consent, target) if stands else consent
        case ConsentDenied() | RequestWithdrawn():
            return Consent(
                consent.permissions,
                consent.requested - {target},
                consent.ends,
                _with(consent.requested_ends, target, None),
            )
        case _:
            assert_never(event)


def _with_request(consent: Consent, target: RecordType, end: datetime | None) -> Consent:
    return Consent(
        consent.permissions,
        consent.requested | {target},
        consent.ends,
        _with(consent.requested_ends, target, end),
    )


def _without_grant(consent: Consent, target: RecordType) -> Consent:
    return Consent(
        consent.permissions - {target},
        consent.requested,
        _with(consent.ends, target, None),
        consent.requested_ends,
    )


def _with(ends: Ends, target: RecordType, end: datetime | None) -> Ends:
    if end is not None:
        return ends.set(target, end)
    return ends.delete(target) if target in ends else ends
