"""Every exchange, queue and routing key on the broker."""

import re
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from shared.messages.commands import ConsentCommand
from shared.messages.events import EVENTS as EVENT_TYPES
from shared.messages.events import ConsentEvent
from shared.values.partition import partition_of

COMMANDS: Final = "consent.commands"
EVENTS: Final = "consent.events"
QUERIES: Final = "consent.queries"
CHECKS: Final = "consent.checks"
UNKNOWN_QUERIES: Final = "consent.queries.unknown"
MOVED_QUERIES: Final = "consent.queries.moved"
TOPOLOGY_LOCK: Final = "consent.topology"
UNROUTABLE: Final = "consent.unroutable"
DEAD_LETTERS: Final = "consent.dead-letters"
LOG: Final = "consent.log"

LIST_CONSENTS: Final = "ListConsents"
HAS_CONSENT: Final = "HasConsent"
CHECK_CONSENTS: Final = "CheckConsents"
LIST_PATIENTS: Final = "ListPatients"
CONSENT_HISTORY: Final = "ConsentHistory"
READ_EVENTS: Final = "ReadEvents"

DEPLOYMENT: Final = "consent.deployment"

_WORD = re.compile(r"[a-z0-9_-]{1,40}")


def command_queue(partition: int) -> str:
    """Name the queue of a partition's commands."""
    return f"consent.commands.{partition}"


def projection_queue(partition: int) -> str:
    """Name the queue of a partition's events, as the projection reads them."""
    return f"consent.projection.{partition}"


def witness_queue(partition: int) -> str:
    """Name the queue that tells how far a partition's log goes."""
    return f"consent.witness.{partition}"


def log_mark(log_id: UUID) -> str:
    """Name the exchange by which a virtual host tells which log it works on."""
    return f"{DEPLOYMENT}.{log_id}"


def virtual_host_mark(log_id: UUID, virtual_host: UUID) -> str:
    """Name the exchange by which a log knows the virtual host that works on it."""
    return f"{DEPLOYMENT}.{log_id}.{virtual_host}"


def command_key(command: ConsentCommand, partitions: int) -> str:
    """Say where a command must be sent: `grant.3`."""
    return f"{command.verb}.{partition_of(command.patient_id, partitions)}"


def event_key(event: ConsentEvent, partition: int) -> str:
    """Say how an event is published: `granted.doctor.exams.3`."""
    return f"{event.fact}.{event.grantee.entity}.{event.target}.{partition}"


def unknown_event_key(type_: str, data: Mapping[str, object], partition: int) -> str:
    """Say how an event that this code can't read is published, as far as its data tells.

    As `event_key` would where the event keeps to the usual fields; else a word is `unknown`.
    """
    entity = next((value for name, value in data.items() if name.endswith("_entity")), None)
    known = EVENT_TYPES.get(type_)
    fact = known.fact if known else type_.removeprefix("Consent").lower()
    words = (fact, entity, data.get("target"))
    return ".".join([*map(_word, words), str(partition)])


def _word(value: object) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else "unknown"
