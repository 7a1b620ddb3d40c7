"""Copies a message that is at fault into the dead letters: whole, with the reason beside it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

from shared import names
from shared.broker import PERSISTENT, Delivery, Outgoing, Properties
from shared.replies import Detail

LARGEST_HEADER: Final = 120_000
"""Bytes; a header frame above the 128 KiB that RabbitMQ agrees on would end the connection."""
STEERING: Final = frozenset({"CC", "BCC"})
"""Headers by which RabbitMQ would deliver copies to other queues, with this worker's rights."""
COPIED: Final = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "message_type",
    "app_id",
)
"""All but `user_id`, which the broker would compare with ours, and `expiration`, which would
let the dead letter expire: these two are kept as headers."""


def dead_letter(delivery: Delivery, error: str, details: Sequence[Detail] = ()) -> Outgoing:
    """Copy a delivery for the dead letters; `error` and `details` say why."""
    properties = delivery.header.properties
    found = _reason(delivery, error, details)
    reason = {name: value for name, value in found.items() if value is not None}
    original = {
        _harmless(name): value
        for name, value in (properties.headers or {}).items()
        if name not in found  # its sender may not say what only we can know
    }
    copy = _copy(properties, {**original, **reason})
    if not _fits(copy, len(delivery.body)):
        copy = _copy(properties, {**reason, "x-consent-headers": "left out: too large or odd"})
    return Outgoing("", names.DEAD_LETTERS, delivery.body, copy)


def _reason(delivery: Delivery, error: str, details: Sequence[Detail]) -> dict[str, Any]:
    properties = delivery.header.properties
    return {
        "x-consent-error": error,
        "x-consent-details": "; ".join(f"{one.field}: {one.message}" for one in details),
        "x-consent-exchange": delivery.exchange,
        "x-consent-routing-key": delivery.routing_key,
        "x-consent-user-id": properties.user_id,
        "x-consent-expiration": properties.expiration,
    }


def _harmless(name: str) -> str:
    return f"x-consent-original-{name}" if name in STEERING else name


def _copy(properties: Properties, headers: Mapping[str, Any]) -> Properties:
    kept = {name: getattr(properties, name) for name in COPIED}
    return Properties(**kept, headers=dict(headers), delivery_mode=PERSISTENT)


def _fits(properties: Properties, body_size: int) -> bool:
    header = ContentHeader(0, body_size, properties)
    try:
        return len(header.marshal()) <= LARGEST_HEADER
    except (PAMQPException, TypeError, ValueError, OverflowError):
        return False  # the library reads more kinds of values than it writes
