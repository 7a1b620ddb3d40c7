"""What decisions are made for: a command as it was received, or ends that came. Pure."""

from dataclasses import dataclass
from uuid import UUID

from command_service.domain.fingerprint import NO_COMMAND, is_of
from shared.messages.commands import AskConsent, ConsentCommand, GrantConsent


@dataclass(frozen=True, slots=True)
class Received:
    """A well-formed command, and what of its message is kept with its events."""

    command_id: UUID
    command: ConsentCommand
    fingerprint: bytes
    partition: int
    correlation_id: str
    issued_by: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    @property
    def patient_id(self) -> str:
        """Whom it is about."""
        return self.command.patient_id

    @property
    def involves_end(self) -> bool:
        """Whether it names an end, so that the time matters."""
        command = self.command
        return isinstance(command, AskConsent | GrantConsent) and command.expires_at is not None

    def is_known_as(self, known: bytes) -> bool:
        """Whether this is what was decided before under that fingerprint."""
        return known == self.fingerprint or is_of(known, self.command)


@dataclass(frozen=True, slots=True)
class EndsCame:
    """What nobody sends: ends of one patient's consents have come, and are recorded."""

    command_id: UUID
    patient_id: str
    partition: int
    fingerprint: bytes = NO_COMMAND
    issued_by: None = None
    traceparent: None = None
    tracestate: None = None

    @property
    def correlation_id(self) -> str:
        """Its own id: nothing came before it."""
        return str(self.command_id)
