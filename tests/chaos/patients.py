"""The simplest model of a patient that there is: what must come of each command and event."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from tests.chaos.evidence import Command, ConsentRow, LogRow

RECORD_TYPES = frozenset({"exams", "consultations", "conditions", "er_visits"})
EVENT_OF = {
    "AskConsent": "ConsentAsked",
    "GrantConsent": "ConsentGranted",
    "RevokeConsent": "ConsentRevoked",
    "DenyConsent": "ConsentDenied",
    "WithdrawRequest": "RequestWithdrawn",
}
END_CAME = "ConsentExpired"
PREFIX_OF = {
    "ConsentAsked": "by",
    "ConsentGranted": "to",
    "ConsentRevoked": "from",
    "ConsentDenied": "to",
    "RequestWithdrawn": "by",
    END_CAME: "to",
}
TOO_LATE = "expiry_not_in_the_future"


class Who(NamedTuple):
    """Somebody who may see something of a patient."""

    entity: str
    id: str


class Decided(NamedTuple):
    """What the model says of a command: why not, or which record types it touches."""

    error: str | None
    touched: frozenset[str]
    ends: frozenset[datetime] = frozenset()
    """The ends that a refusal must name."""


class Standing(NamedTuple):
    """Something that is granted, and has an end."""

    who: Who
    target: str
    end: datetime


def named_by(target: str) -> frozenset[str]:
    """Return the record types that a target names."""
    return RECORD_TYPES if target == "all" else frozenset({target})


def who_of(row: LogRow) -> Who:
    """Return whom an event is about."""
    prefix = PREFIX_OF[row.type]
    return Who(row.data[f"{prefix}_entity"], row.data[f"{prefix}_id"])


def end_of(row: LogRow) -> datetime | None:
    """Return the end that an event names."""
    end = row.data.get("expires_at")
    return None if end is None else datetime.fromisoformat(end)


@dataclass
class ModelPatient:
    """A patient as simple as can be. Ends come by their events alone."""

    granted: dict[Who, dict[str, datetime | None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """Until when; None for what has no end."""
    requested: dict[Who, dict[str, datetime | None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """Likewise, by the newest request."""
    version: int = 0

    def decide(self, command: Command) -> Decided:
        """Say what must come of a command now, if its own end has not come."""
        who, named = Who(command.entity, command.entity_id), named_by(command.target)
        if command.type in ("DenyConsent", "WithdrawRequest"):
            return _decided(named & self.requested[who].keys(), "consent_not_requested")
        granted = self.granted[who]
        if command.type == "RevokeConsent":
            return _decided(named & granted.keys(), "consent_not_granted")
        gained = {one for one in named if _gains(granted, one, command.expires_at)}
        ends = {granted[one] for one in named - gained}
        return _decided(gained, "consent_already_granted", ends - {None})

    def apply(self, row: LogRow) -> None:
        """Let an event have happened."""
        self.version += 1
        who, target = who_of(row), row.data["target"]
        if row.type == "ConsentAsked":
            self.requested[who][target] = end_of(row)
        elif row.type == "ConsentGranted":
            self.granted[who][target] = end_of(row)
            self.requested[who].pop(target, None)
        elif row.type in ("ConsentRevoked", END_CAME):
            self.granted[who].pop(target, None)
        else:
            self.requested[who].pop(target, None)

    def standing(self) -> Iterator[Standing]:
        """Give what is granted and has an end that no event has told of."""
        for who, granted in self.granted.items():
            yield from (Standing(who, one, end) for one, end in granted.items() if end)

    def holds(self, who: Who, target: str, at: datetime) -> bool:
        """Whether all that a target names is granted at a moment, by comparison with its end."""
        granted = self.granted[who]
        return all(
            one in granted and ((end := granted[one]) is None or at < end)
            for one in named_by(target)
        )

    def rows(self, patient_id: str) -> Iterator[ConsentRow]:
        """Give the rows that the read model must have of this patient."""
        for who in self.granted.keys() | self.requested.keys():
            permissions, requested = self.granted[who], self.requested[who]
            if permissions or requested:
                yield ConsentRow(
                    patient_id,
                    *who,
                    tuple(sorted(permissions)),
                    tuple(sorted(requested)),
                    _ends(permissions),
                    _ends(requested),
                )


def _ends(until: dict[str, datetime | None]) -> tuple[tuple[str, datetime], ...]:
    return tuple(sorted((target, end) for target, end in until.items() if end))


def _decided(
    touched: set[str] | frozenset[str], refusal: str, ends: set[datetime | None] | None = None
) -> Decided:
    if touched:
        return Decided(None, frozenset(touched))
    return Decided(refusal, frozenset(), frozenset(end for end in ends or () if end))


def _gains(granted: dict[str, datetime | None], target: str, end: datetime | None) -> bool:
    """Whether a grant until then adds something to what is granted."""
    if target not in granted:
        return True
    stands = granted[target]
    return stands is not None and (end is None or end > stands)
