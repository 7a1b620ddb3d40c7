"""Makes the AMQP library read every message that the broker delivers, however odd its properties.

By itself its reader ends the connection over text that is not UTF-8, or a time beyond the year
9999. The message would come again and end the next connection, until the delivery limit sets it
aside, together with all the innocent ones that were on their way beside it. And some headers that
just fit into their frame take it a third of a second and megabytes of memory.
"""

import re
from typing import Any, Final

from pamqp import decode

SUBSTITUTE: Final = "\x1a"
"""Stands for bytes that are no text. A control character, so that no field with one is valid;
a single byte, so that a property grows no longer than AMQP allows."""
DEEPEST: Final = 16
"""How deeply headers may be nested; what is read must also be written, on any stack."""
LARGEST: Final = 4_096
"""Bytes of all headers together; a worker holds hundreds of messages, and all of theirs."""
MOST: Final = 100
"""Headers, with those within others: each costs many times the bytes that it travels in."""
UNREADABLE: Final[dict[str, Any]] = {"x-consent-headers": "left out: unreadable"}
TOO_LARGE: Final[dict[str, Any]] = {"x-consent-headers": "left out: too large"}
_DELIVERIES: Final = "x-delivery-count"
_COUNTED: Final = re.compile(rb"\x10x-delivery-count[lI]")
_BROKEN: Final = (ValueError, ArithmeticError, OSError, RecursionError)


def read_odd_properties() -> None:
    """Have this process read odd properties from here on. Doing it again changes nothing."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = _timestamp
    if decode.METHODS["table"] is not _bounded_table:
        decode.METHODS["table"] = _table


def bound_headers() -> None:
    """Have this process read few and small headers only, and leave out the others whole.

    It holds for all that the process receives, so it is for a worker, which holds hundreds of
    messages that anybody sent; not for an application that has other messages of its own.
    """
    decode.METHODS["table"] = _bounded_table


def _short_string(value: bytes) -> tuple[int, str]:
    try:
        return decode.short_str(value)
    except UnicodeDecodeError:
        end = 1 + value[0]
        return end, value[1:end].decode(errors="replace").replace("\ufffd", SUBSTITUTE)


def _timestamp(value: bytes) -> tuple[int, Any]:
    try:
        return decode.timestamp(value)
    except _BROKEN:
        return 8, None


def _table(value: bytes) -> tuple[int, dict[str, Any]]:
    end = 4 + int.from_bytes(value[:4])
    try:
        _, fields = decode.field_table(value)
        if _nesting(fields) <= DEEPEST:
            return end, fields
    except _BROKEN:
        pass
    return end, UNREADABLE | _deliveries(value[:end])


def _bounded_table(value: bytes) -> tuple[int, dict[str, Any]]:
    end = 4 + int.from_bytes(value[:4])
    if end <= LARGEST:
        _, fields = _table(value)
        if _count(fields) <= MOST:
            return end, fields
    return end, TOO_LARGE | _deliveries(value[:end])


def _deliveries(table: bytes) -> dict[str, int]:
    """Find in headers that are not read how often the broker says that it delivered this before.

    A sender may have written the same elsewhere in them: the largest number counts, so that
    nobody hides how often a message came back.
    """
    sizes = {ord("l"): 8, ord("I"): 4}
    counts = [
        int.from_bytes(table[header.end() : header.end() + sizes[header[0][-1]]], signed=True)
        for header in _COUNTED.finditer(table)
    ]
    return {_DELIVERIES: max(counts)} if counts else {}


def _count(value: object) -> int:
    """Count the values in a table, with those in the tables and arrays within it."""
    match value:
        case dict():
            return len(value) + sum(map(_count, value.values()))
        case list():
            return len(value) + sum(map(_count, value))
        case _:
            return 0


def _nesting(value: object) -> int:
    """Count how many tables and arrays stand in one another."""
    match value:
        case dict():
            return 1 + max(map(_nesting, value.values()), default=0)
        case list():
            return 1 + max(map(_nesting, value), default=0)
        case _:
            return 0
