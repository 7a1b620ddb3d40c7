"""Reads queries off their queue and sends the answers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from shared.messages.queries import QueryFailed
from shared.messages.replies import Detail
from shared.messages.validation import details_of, read_json
from shared.rabbitmq.connection import AmqpMessage, Properties
from shared.rabbitmq.publishing import Outgoing
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.values.oversized import LARGEST_ANSWER, LARGEST_REQUEST, too_large

Model = TypeVar("Model", bound=BaseModel)
Query = TypeVar("Query")
Query_co = TypeVar("Query_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Kind(Generic[Query_co]):
    """How queries of one kind are read."""

    read: Callable[[bytes], Query_co]
    """Raises ValidationError."""
    largest: int = LARGEST_REQUEST
    """Bytes of its body."""


def kind(model: type[Model]) -> Kind[Model]:
    """Read queries of a kind as this model has it."""
    return Kind(partial(read_json, model))


def read_query(message: AmqpMessage, kinds: Mapping[str, Kind[Query]]) -> Query | QueryFailed:
    """Read a query of one of these kinds, or say what is wrong with it."""
    found = kinds.get(message.routing_key or "")
    if found is None:
        known = ", ".join(kinds)
        return invalid("type", f"is not answered here; ask one of {known}, as the routing key")
    if (fault := too_large(message.body, found.largest)) is not None:
        return invalid("body", fault)
    try:
        return found.read(message.body)
    except ValidationError as error:
        details = details_of(error)
        fields = ", ".join(detail.field for detail in details)
        return QueryFailed(
            error="validation_error", message=f"the query is not valid: {fields}", details=details
        )


def invalid(field: str, message: str) -> QueryFailed:
    """Refuse a query for one field."""
    return QueryFailed(
        error="validation_error",
        message=f"the query is not valid: {field}",
        details=[Detail(field=field, message=message)],
    )


async def answer(replies: ReplyPublisher, answered: Iterable[tuple[AmqpMessage, bytes]]) -> None:
    """Send answers to whoever asked; nobody is told where no `reply_to` was given.

    One that nobody would read, or the broker not carry, becomes an error.
    """
    await replies.send(
        [
            _outgoing(message, body)
            for message, body in answered
            if message.header.properties.reply_to
        ]
    )


def _outgoing(message: AmqpMessage, body: bytes) -> Outgoing:
    asked = message.header.properties
    properties = Properties(
        content_type="application/json",
        correlation_id=asked.correlation_id or asked.message_id,
        message_type=_type_of_answer(message.routing_key or ""),
    )
    if len(body) > LARGEST_ANSWER:
        body = invalid("answer", f"is larger than {LARGEST_ANSWER:,} bytes: ask for less").to_json()
    return Outgoing("", asked.reply_to or "", body, properties)


def _type_of_answer(query_type: str) -> str:
    """Name the answer after its query, in the 255 bytes that AMQP allows."""
    return f"{query_type}Answer".encode()[:255].decode(errors="ignore")
