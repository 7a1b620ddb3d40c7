"""Makes the AMQP library read every message that the broker delivers, however odd its properties.

By itself its reader ends the connection over text that is not UTF-8, or a time beyond the year
9999. The message would come again and end the next connection, until the delivery limit sets it
aside, together with all the innocent ones that were on their way beside it.
"""

from typing import Any, Final

from pamqp import decode

SUBSTITUTE: Final = "\x1a"
"""Stands for bytes that are no text. A control character, so that no field with one is valid;
a single byte, so that a property grows no longer than AMQP allows."""
DEEPEST: Final = 16
"""How deeply headers may be nested; what is read must also be written, on any stack."""
UNREADABLE: Final = {"x-consent-headers": "left out: unreadable"}
_BROKEN: Final = (ValueError, ArithmeticError, OSError, RecursionError)


def read_odd_properties() -> None:
    """Have this process read odd properties from here on. Doing it again changes nothing."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = _timestamp
    decode.METHODS["table"] = _table


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
    try:
        size, fields = decode.field_table(value)
        return size, fields if _nesting(fields) <= DEEPEST else dict(UNREADABLE)
    except _BROKEN:
        return 4 + int.from_bytes(value[:4]), dict(UNREADABLE)


def _nesting(value: object) -> int:
    """Count how many tables and arrays stand in one another."""
    match value:
        case dict():
            return 1 + max(map(_nesting, value.values()), default=0)
        case list():
            return 1 + max(map(_nesting, value), default=0)
        case _:
            return 0
