"""A command as it was received: what decisions and receipts are made of. Pure."""

from dataclasses import dataclass
from uuid import UUID

from command_service.domain.fingerprint import is_of
from shared.messages.commands import ConsentCommand


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

    def is_known_as(self, known: bytes) -> bool:
        """Whether this is what was decided before under that fingerprint."""
        return known == self.fingerprint or is_of(known, self.command)
