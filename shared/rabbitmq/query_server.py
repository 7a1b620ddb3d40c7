"""Reads queries off their queue and sends the answers."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from shared.messages.queries import QueryFailed
from shared.messages.replies import Detail
from shared.messages.validation import details_of, read_json
from shared.rabbitmq.connection import AmqpMessage, Properties
from shared.rabbitmq.publishing import Outgoing
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.values.oversized import LARGEST_ANSWER, LARGEST_REQUEST, too_large

Query = TypeVar("Query", bound=BaseModel)


def read_query(message: AmqpMessage, kinds: Mapping[str, type[Query]]) -> Query | QueryFailed:
    """Read a query of one of these kinds, or say what is wrong with it."""
    name = message.routing_key or ""
    kind = kinds.get(name)
    if kind is None:
        known = ", ".join(kinds)
        return invalid("type", f"is not answered here; ask one of {known}, as the routing key")
    if (fault := too_large(message.body, LARGEST_REQUEST)) is not None:
        return invalid("body", fault)
    try:
        return read_json(kind, message.body)
    except ValidationError as error:
        found = details_of(error)
        fields = ", ".join(detail.field for detail in found)
        return QueryFailed(
            error="validation_error", message=f"the query is not valid: {fields}", details=found
        )


def invalid(field: str, message: str) -> QueryFailed:
    """Refuse a query for one field."""
    return QueryFailed(
        error="validation_error",
        message=f"the query is not valid: {field}",
        details=[Detail(field=field, message=message)],
    )


async def answer(replies: ReplyPublisher, message: AmqpMessage, body: bytes) -> None:
    """Send an answer to whoever asked; nobody is told where no `reply_to` was given.

    One that nobody would read, or the broker not carry, becomes an error.
    """
    asked = message.header.properties
    if not asked.reply_to:
        return
    properties = Properties(
        content_type="application/json",
        correlation_id=asked.correlation_id or asked.message_id,
        message_type=_type_of_answer(message.routing_key or ""),
    )
    if len(body) > LARGEST_ANSWER:
        body = invalid("answer", f"is larger than {LARGEST_ANSWER:,} bytes: ask for less").to_json()
    await replies.send([Outgoing("", asked.reply_to, body, properties)])


def _type_of_answer(query_type: str) -> str:
    """Name the answer after its query, in the 255 bytes that AMQP allows."""
    return f"{query_type}Answer".encode()[:255].decode(errors="ignore")
