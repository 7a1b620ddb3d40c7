"""Decides a batch of commands, in their order, against receipts and patients' states. Pure."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from command_service.domain.patient import INITIAL, Patient, decide, expire, fold
from command_service.domain.received import EndsCame, Received
from command_service.domain.rejections import Rejected
from shared.messages.events import ConsentEvent
from shared.messages.replies import CommandRejected, Detail, Outcome, RejectionCode

AT_ANY_TIME: Final = datetime.min.replace(tzinfo=UTC)
"""The time where no end is involved: the rules say the same at all times."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A patient's state and the version it is of."""

    version: int
    state: Patient
    snapshot_version: int = 0
    """The version of its newest snapshot; 0 where there is none."""
    unreadable: str | None = None
    """Why its history can't be read further: nothing can be decided then."""

    def then(self, events: Iterable[ConsentEvent]) -> "Stream":
        """Apply the events that follow."""
        following = list(events)
        state = fold(self.state, following)
        return Stream(self.version + len(following), state, self.snapshot_version)


EMPTY: Final = Stream(0, INITIAL)


class NewEvent(NamedTuple):
    """A decided event, before the log gives it its position and time."""

    id: UUID
    version: int
    event: ConsentEvent
    data: str
    """The event as JSON."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why the rules refused a command."""

    error: RejectionCode
    message: str
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for one command id; it becomes a receipt and perhaps events."""

    received: Received | EndsCame
    version: int
    """The patient's version after the command."""
    events: tuple[NewEvent, ...] = ()
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was decided and recorded earlier for a command id."""

    fingerprint: bytes
    outcome: Outcome


Ruling = Decision | Receipt | CommandRejected


@dataclass
class Batch:
    """The facts that decisions start from, and what they come to."""

    receipts: Mapping[UUID, Receipt]
    streams: MutableMapping[str, Stream]
    """Every patient of the batch who has a history; it moves on with each decision."""
    times: Mapping[int, datetime] = field(default_factory=dict)
    """By partition, the time of its log; it may be left out where no end is involved."""
    longest_grant: timedelta | None = None
    """For how long consent may be granted at most, where that is limited."""
    decided: dict[UUID, Decision] = field(default_factory=dict)

    @property
    def has_unreadable(self) -> bool:
        """Whether the history of one of the patients can't be read."""
        return any(stream.unreadable for stream in self.streams.values())

    def involves_ends(self, received: Iterable[Received]) -> bool:
        """Whether the time matters to one of these commands, or to one of the patients."""
        return any(stream.state.next_end for stream in self.streams.values()) or any(
            each.involves_end for each in received
        )

    def answer(self, received: Received, new_id: Callable[[], UUID]) -> Ruling:
        """Decide one command; what was decided before for its id stands."""
        earlier = self.receipts.get(received.command_id)
        if earlier is not None:
            return earlier if received.is_known_as(earlier.fingerprint) else conflict(received)
        pending = self.decided.get(received.command_id)
        if pending is not None:
            same = pending.received.fingerprint == received.fingerprint
            return pending if same else conflict(received)
        stream = self.streams.get(received.patient_id, EMPTY)
        if stream.unreadable:
            return unreadable_history(
                str(received.command_id), received.patient_id, stream.unreadable
            )
        self.expire(received.patient_id, received.partition, new_id)
        decision = self._decide(received, new_id)
        self.decided[received.command_id] = decision
        return decision

    def expire(self, patient_id: str, partition: int, new_id: Callable[[], UUID]) -> None:
        """Record the ends of a patient's consents that have come, before anything else is.

        So each end that still stood is recorded once, whoever comes upon it first.
        """
        stream = self.streams.get(patient_id, EMPTY)
        if stream.unreadable:
            return
        events = expire(stream.state, patient_id, self._now(partition))
        if events:
            came = EndsCame(new_id(), patient_id, partition)
            self.decided[came.command_id] = self._decision(came, events, new_id)

    def _decide(self, received: Received, new_id: Callable[[], UUID]) -> Decision:
        stream = self.streams.get(received.patient_id, EMPTY)
        now = self._now(received.partition)
        try:
            events = decide(stream.state, received.command, now, self.longest_grant)
        except Rejected as refused:
            rejection = Rejection(refused.error, str(refused), refused.details)
            return Decision(received, stream.version, (), rejection)
        return self._decision(received, events, new_id)

    def _decision(
        self,
        received: Received | EndsCame,
        events: Sequence[ConsentEvent],
        new_id: Callable[[], UUID],
    ) -> Decision:
        stream = self.streams.get(received.patient_id, EMPTY)
        self.streams[received.patient_id] = after = stream.then(events)
        decided = tuple(
            NewEvent(new_id(), version, event, event.to_json())
            for version, event in enumerate(events, start=stream.version + 1)
        )
        return Decision(received, after.version, decided)

    def _now(self, partition: int) -> datetime:
        return self.times.get(partition, AT_ANY_TIME)


def conflict(received: Received) -> CommandRejected:
    """Refuse a command id that was used before for something else."""
    return CommandRejected(
        command_id=str(received.command_id),
        patient_id=received.patient_id,
        error="command_id_conflict",
        message="this command id was used before with another content; use a new one",
    )


def unreadable_history(command_id: str, patient_id: str, reason: str) -> CommandRejected:
    """Refuse what this worker is too old to decide; it uses up no id, and may be sent again."""
    return CommandRejected(
        command_id=command_id,
        patient_id=patient_id,
        error="unreadable_history",
        message="this worker can't read the patient's history: send it again after the upgrade",
        details=[Detail(field="patient_id", message=reason)],
    )
