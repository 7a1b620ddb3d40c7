"""Reads a delivery: either a command that can be decided, or what is wrong with it."""

import re
from typing import Final
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError

from command_service.domain.fingerprint import fingerprint
from command_service.domain.received import Received
from shared.messages import names
from shared.messages.commands import COMMANDS, ConsentCommand
from shared.messages.replies import CommandError, CommandRejected, Detail
from shared.messages.validation import details_of, read_json
from shared.postgres.uuids import read_uuid
from shared.rabbitmq.connection import AmqpMessage, Properties
from shared.values.legible import is_plain
from shared.values.oversized import LARGEST_REQUEST, too_large
from shared.values.partition import partition_of
from shared.values.vocabulary import LegibleLine, RecordedId

CONTENT_TYPE: Final = "application/json"
_VERBS: Final = "|".join(command.verb for command in COMMANDS.values())
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_LINE: TypeAdapter[str] = TypeAdapter(LegibleLine)


class _Addressed(BaseModel):
    patient_id: RecordedId


class MessageFault(Exception):
    """The message can't be decided; it is answered and set aside."""

    def __init__(
        self,
        error: CommandError,
        message: str,
        details: list[Detail],
        patient_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.details = details
        self.patient_id = patient_id

    def rejection(self, command_id: str | None) -> CommandRejected:
        """Say it to the sender."""
        return CommandRejected(
            command_id=command_id,
            patient_id=self.patient_id,
            error=self.error,
            message=str(self),
            details=self.details,
        )


def decode(message: AmqpMessage, partitions: int) -> Received | CommandRejected:
    """Read a delivery from a partition's queue."""
    properties = message.header.properties
    try:
        received = _read(properties, message.body, partitions)
        _check_route(received, message, partitions)
    except MessageFault as fault:
        return fault.rejection(properties.message_id)
    return received


def decode_unroutable(message: AmqpMessage, partitions: int) -> CommandRejected:
    """Say where a command that reached no partition's queue should have gone."""
    properties = message.header.properties
    try:
        received = _read(properties, message.body, partitions)
        key = names.command_key(received.command, partitions)
        fault = _misrouted(f'use the routing key "{key}"', received.command.patient_id)
    except MessageFault as unreadable:
        hint = f'use "<{_VERBS}>.<partition>", with a partition below {partitions}'
        fault = _misrouted(hint, unreadable.patient_id)
    return fault.rejection(properties.message_id)


def _read(properties: Properties, body: bytes, partitions: int) -> Received:
    if (fault := too_large(body, LARGEST_REQUEST)) is not None:
        raise _invalid_field("body", fault)
    model = _command_type(properties)
    command_id = _command_id(properties)
    _check_content_type(properties)
    correlation_id = _line("correlation_id", properties.correlation_id)
    issued_by = _line("user_id", properties.user_id)
    try:
        command = read_json(model, body)
    except ValidationError as error:
        raise _invalid(details_of(error), _patient_id(body)) from None
    headers = properties.headers or {}
    traceparent = _matching(_TRACEPARENT, headers.get("traceparent"))
    return Received(
        command_id=command_id,
        command=command,
        fingerprint=fingerprint(command),
        partition=partition_of(command.patient_id, partitions),
        correlation_id=correlation_id or str(command_id),
        issued_by=issued_by,
        traceparent=traceparent,
        tracestate=_matching(_TRACESTATE, headers.get("tracestate")) if traceparent else None,
    )


def _command_type(properties: Properties) -> type[ConsentCommand]:
    model = COMMANDS.get(properties.message_type or "")
    if model is None:
        raise _invalid_field("type", f"must be one of {', '.join(COMMANDS)}")
    return model


def _command_id(properties: Properties) -> UUID:
    text = properties.message_id or ""
    if not _UUID.fullmatch(text):
        raise _invalid_field(
            "message_id", "must be a UUID like 123e4567-e89b-42d3-a456-426614174000"
        )
    return read_uuid(text)


def _check_content_type(properties: Properties) -> None:
    given = (properties.content_type or CONTENT_TYPE).partition(";")[0].strip().lower()
    if given != CONTENT_TYPE:
        raise _invalid_field("content_type", f"must be {CONTENT_TYPE}")


def strayed(received: Received, partitions: int) -> CommandRejected:
    """Refuse a good command in another partition's queue: a CC header had a copy sent there."""
    expected = names.command_key(received.command, partitions)
    hint = f'use the routing key "{expected}" alone, without CC or BCC'
    fault = _misrouted(hint, received.command.patient_id)
    return fault.rejection(str(received.command_id))


def _check_route(received: Received, message: AmqpMessage, partitions: int) -> None:
    """Check the routing key, and that the broker has checked who may use it.

    Through another exchange, with the queue's name in a CC header, a message could have any key.
    """
    expected = names.command_key(received.command, partitions)
    if message.exchange != names.COMMANDS or message.routing_key != expected:
        hint = f'publish to the exchange {names.COMMANDS} and use the routing key "{expected}"'
        raise _misrouted(hint, received.command.patient_id)


def _line(field: str, text: str | None) -> str | None:
    """Check text that is kept with the events; PostgreSQL takes no NUL, logs no line breaks."""
    if not text:
        return None
    if is_plain(text):
        return text
    try:
        return _LINE.validate_python(text)
    except ValidationError as error:
        raise _invalid_field(field, details_of(error)[0].message) from None


def _matching(pattern: re.Pattern[str], value: object) -> str | None:
    """Keep trace context only where it is well formed, as W3C asks."""
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _patient_id(body: bytes) -> str | None:
    """Find whom a command that is not valid is about, where it says so."""
    try:
        return _Addressed.model_validate_json(body).patient_id
    except ValidationError:
        return None


def _invalid(details: list[Detail], patient_id: str | None = None) -> MessageFault:
    fields = ", ".join(detail.field for detail in details)
    message = f"the command is not valid: {fields}"
    return MessageFault("validation_error", message, details, patient_id)


def _invalid_field(field: str, message: str) -> MessageFault:
    return _invalid([Detail(field=field, message=message)])


def _misrouted(hint: str, patient_id: str | None) -> MessageFault:
    detail = Detail(field="routing_key", message=hint)
    return MessageFault("misrouted_command", "the routing key is wrong", [detail], patient_id)
