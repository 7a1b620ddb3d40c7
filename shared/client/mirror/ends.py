"""What one grantee may see of one patient, and until when. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias, get_args

from shared.messages.events import ConsentEvent, ConsentExpired, ConsentGranted, ConsentRevoked
from shared.values.vocabulary import RECORD_TYPES, Target, record_types

Ends: TypeAlias = tuple[int | None, ...]
"""Of each record type, in the order of RECORD_TYPES: when consent to it ends, in microseconds since
1970; None where it is not granted."""

NOTHING: Final[Ends] = (None,) * len(RECORD_TYPES)
NO_END: Final = 2**63 - 1
"""Later than any moment."""
PLACES: Final[dict[Target, tuple[int, ...]]] = {
    target: tuple(map(RECORD_TYPES.index, record_types(target))) for target in get_args(Target)
}
"""Where the record types that a target names stand among the ends."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    """Count the microseconds since 1970, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def evolve(ends: Ends, event: ConsentEvent) -> Ends:
    """Apply one recorded fact. Applying it twice equals applying it once."""
    place = RECORD_TYPES.index(event.target)
    before = ends[place]
    match event:
        case ConsentGranted():
            end = NO_END if event.expires_at is None else microseconds(event.expires_at)
            return _with(ends, place, max(end, before or 0))  # a grant extends, and never shortens
        case ConsentRevoked():
            return _with(ends, place, None)
        case ConsentExpired() if before is not None and before <= microseconds(event.expires_at):
            return _with(ends, place, None)
    return ends  # what was asked for, denied, withdrawn, or extended since, changes nothing here


def allows(ends: Sequence[int | None], target: Target, now: int) -> bool:
    """Whether every record type that the target names is granted, and not at its end yet."""
    for place in PLACES[target]:
        end = ends[place]
        if end is None or end <= now:
            return False
    return True


def _with(ends: Ends, place: int, end: int | None) -> Ends:
    return (*ends[:place], end, *ends[place + 1 :])
