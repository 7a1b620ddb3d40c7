"""Every exchange, queue and routing key on the broker."""

from typing import Final

from shared.commands import ConsentCommand
from shared.events import ConsentEvent
from shared.partition import partition_of

COMMANDS: Final = "consent.commands"
EVENTS: Final = "consent.events"
QUERIES: Final = "consent.queries"
UNKNOWN_QUERIES: Final = "consent.queries.unknown"
UNROUTABLE: Final = "consent.unroutable"
DEAD_LETTERS: Final = "consent.dead-letters"
LOG: Final = "consent.log"

LIST_CONSENTS: Final = "ListConsents"
HAS_CONSENT: Final = "HasConsent"
CONSENT_HISTORY: Final = "ConsentHistory"
READ_EVENTS: Final = "ReadEvents"


def command_queue(partition: int) -> str:
    """Name the queue of a partition's commands."""
    return f"consent.commands.{partition}"


def projection_queue(partition: int) -> str:
    """Name the queue of a partition's events, as the projection reads them."""
    return f"consent.projection.{partition}"


def command_key(command: ConsentCommand, partitions: int) -> str:
    """Say where a command must be sent: `grant.3`."""
    return f"{command.verb}.{partition_of(command.patient_id, partitions)}"


def event_key(event: ConsentEvent, partition: int) -> str:
    """Say how an event is published: `granted.doctor.exams.3`."""
    return f"{event.fact}.{event.grantee.entity}.{event.target}.{partition}"
