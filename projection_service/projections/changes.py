"""What a batch of events does to the read model. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

from projection_service.projections.consents import Consent
from projection_service.projections.spans import Spans
from shared.values.vocabulary import Grantee


class Key(NamedTuple):
    """Whose consent for whom."""

    patient_id: str
    grantee: Grantee


@dataclass(frozen=True, slots=True)
class Move:
    """How far one partition's checkpoint moves."""

    epoch: int
    checkpoint: int
    position: int
    event_id: str | None = None
    """Of the event at the new position; None leaves what is known of it."""
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that is not applied, and why."""

    partition: int
    position: int
    patient_id: str
    event: str
    """JSON."""
    reason: str


@dataclass(slots=True)
class Changes:
    """What a batch of events does to the read model."""

    moves: dict[int, Move] = field(default_factory=dict)
    consents: dict[Key, Consent] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    parked: list[Parked] = field(default_factory=list)
    spans: Spans = field(default_factory=Spans)


@dataclass(frozen=True, slots=True)
class Held:
    """What one grantee may see, as of a patient's version."""

    version: int
    consent: Consent
