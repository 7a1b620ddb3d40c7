"""What a command's sender is told: its outcome, the same one however often it asks."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from shared.values.vocabulary import RecordType

RejectionCode = Literal[
    "consent_already_granted",
    "consent_not_granted",
    "consent_not_requested",
    "expiry_not_in_the_future",
    "grant_too_long",
    "too_many_requests",
]
"""Refusals by the rules; they are decided once and kept in a receipt."""

CommandError = Literal[
    "consent_already_granted",
    "consent_not_granted",
    "consent_not_requested",
    "expiry_not_in_the_future",
    "grant_too_long",
    "too_many_requests",
    "validation_error",
    "misrouted_command",
    "command_id_conflict",
    "unreadable_history",
]


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Detail(_Message):
    """One thing to mend: the field, and what is wrong with it."""

    field: str
    message: str


class EventSummary(_Message):
    """An event that a command caused."""

    id: str
    type: str
    target: RecordType
    version: int
    position: int


class CommandAccepted(_Message):
    """The command was decided and its events are recorded."""

    type: ClassVar = "CommandAccepted"

    status: Literal["accepted"] = "accepted"
    command_id: str
    patient_id: str
    partition: int
    version: int
    events: list[EventSummary]


class CommandRejected(_Message):
    """The command changed nothing. Ids are null where the message did not tell them."""

    type: ClassVar = "CommandRejected"

    status: Literal["rejected"] = "rejected"
    command_id: str | None
    patient_id: str | None
    error: CommandError
    message: str
    details: list[Detail] = []


Outcome = CommandAccepted | CommandRejected
