"""What a round left behind, as plain data: what was sent, answered, logged, received, projected."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any

Json = dict[str, Any]
PREFIXES = {
    "AskConsent": "by",
    "GrantConsent": "to",
    "RevokeConsent": "from",
    "DenyConsent": "to",
    "WithdrawRequest": "by",
}


@dataclass(frozen=True)
class Command:
    """A command, and when it was sent; the first time, or again."""

    id: str
    type: str
    patient_id: str
    entity: str
    entity_id: str
    target: str
    sender: str
    sent: list[tuple[datetime, str]] = field(default_factory=list)
    """When, and how: the first time, or as which kind of repeat."""
    expires_at: datetime | None = None

    def body(self, zone: tzinfo = UTC) -> Json:
        """Write its body, as the contract says, with its end in some zone."""
        prefix = PREFIXES[self.type]
        body = {
            "patient_id": self.patient_id,
            f"{prefix}_entity": self.entity,
            f"{prefix}_id": self.entity_id,
            "target": self.target,
        }
        if self.expires_at is not None:
            body["expires_at"] = self.expires_at.astimezone(zone).isoformat()
        return body


@dataclass(frozen=True)
class Reply:
    """What a sender was told."""

    command_id: str
    at: datetime
    content: Json


@dataclass(frozen=True)
class Receipt:
    """A row of command_receipts."""

    command_id: str
    patient_id: str
    partition: int
    stream_version: int
    first_position: int | None
    event_count: int
    error: str | None
    message: str | None
    recorded_at: datetime
    details: Sequence[Json] = ()


@dataclass(frozen=True)
class LogRow:
    """A row of events."""

    partition: int
    position: int
    stream_id: str
    stream_version: int
    event_id: str
    type: str
    schema_version: int
    data: Json
    recorded_at: datetime
    correlation_id: str
    causation_id: str


@dataclass(frozen=True)
class Received:
    """What the subscriber got, in the order in which it got it."""

    routing_key: str
    message_id: str | None
    body: Json


@dataclass(frozen=True, order=True)
class ConsentRow:
    """A row of patient_consent."""

    patient_id: str
    entity: str
    entity_id: str
    permissions: tuple[str, ...]
    requested: tuple[str, ...]
    ends: tuple[tuple[str, datetime], ...] = ()
    """Of what is granted and has one."""
    requested_ends: tuple[tuple[str, datetime], ...] = ()


@dataclass(frozen=True)
class Held:
    """What somebody was told who asked whether a consent is in force."""

    asked_at: datetime
    answered_at: datetime
    patient_id: str
    entity: str
    entity_id: str
    target: str
    version: int
    has_consent: bool


@dataclass(frozen=True)
class Takeover:
    """How a partition fared whose worker's database had fallen silent."""

    at: datetime
    worker: str
    partition: int
    seconds: float | None
    """Until another worker had done what there was to do; None: nobody had when we gave up."""


@dataclass(frozen=True)
class Forgery:
    """How honest askers fared while somebody else forged addresses for replies."""

    at: datetime
    asked: int
    """By a direct address, and decided; 0 where the asker's connection did not stay whole."""
    unanswered: int
    """Of these, though there was all the time for it."""
    never_answered: int
    """Of all that were decided, however often they were asked again, afterwards."""


@dataclass(frozen=True)
class Span:
    """From when to when a fault was under way."""

    kind: str
    began: datetime
    ended: datetime


@dataclass(frozen=True)
class Giant:
    """A message that is far too large."""

    id: str
    type: str
    size: int
    confirmed: bool
    answers: Sequence[Json] = ()


@dataclass
class Evidence:
    """Everything that the checker compares."""

    partitions: int
    commands: Sequence[Command]
    """All were confirmed by the broker. Each patient's are in the order in which its only sender
    sent them, each after the confirm of the one before."""
    without_outcome_when_healed: frozenset[str] = frozenset()
    """Ids of commands without a receipt when all was healed, before anything was asked again."""
    replies: Sequence[Reply] = ()
    held: Sequence[Held] = ()
    read_at: datetime | None = None
    """When the log was read, which tells of every end that had long come."""
    receipts: Sequence[Receipt] = ()
    log: Sequence[LogRow] = ()
    received: Sequence[Received] = ()
    consents: Sequence[ConsentRow] = ()
    patient_versions: dict[str, int] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    published_positions: dict[int, int] = field(default_factory=dict)
    checkpoints: dict[int, int] = field(default_factory=dict)
    trespasses: Sequence[str] = ()
    """Writes by a worker to a partition that another one owned."""
    parked: int = 0
    dead_letters: Sequence[str | None] = ()
    """The ids of the messages in there."""
    giants: Sequence[Giant] = ()
    alone: Sequence[Span] = ()
    """When nothing but bad neighbours was under way, and nothing else shortly before."""
    takeovers: Sequence[Takeover] = ()
    forgeries: Sequence[Forgery] = ()
    largest_mb: dict[str, float] = field(default_factory=dict)
    """The most memory that a worker in each place took."""
    answered_within: float = 0.0
    """How many seconds a partition may wait for another worker where its own fell silent."""
    repeats_allowed: int = 0
    """How many events may have come to the subscriber once more, in all."""
    copies_allowed: int = 1
    """How often one event may have come to it."""
