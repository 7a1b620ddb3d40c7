"""A moment in a message: RFC 3339, with its zone; and the end of a consent, which is one."""

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import (
    PlainSerializer,
    Strict,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

REMEDY: Final = "must be a time with its zone, like 2026-11-23T08:00:00Z"
_RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:(?P<second>\d\d)(\.(?P<fraction>\d{1,30}))?"
    r"([Zz]|[+-]\d\d:\d\d)",
    re.ASCII,
)
FIRST_YEAR_WITHOUT_ENDS: Final = 9999
"""Who writes it means *never*, and says so by leaving the end out."""
NANOSECONDS: Final = 9
"""Digits of a second's fraction that clocks give; more come from a mistake."""


def timestamp(moment: datetime) -> str:
    """Write a UTC moment as RFC 3339 with all six digits of the microseconds."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _in_utc(value: object, read: ValidatorFunctionWrapHandler) -> datetime:
    """Refuse what pydantic would take as well: numbers, a time without zone, one without UTC."""
    try:
        if isinstance(value, datetime) or (isinstance(value, str) and _RFC_3339.fullmatch(value)):
            moment: datetime = read(value)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise PydanticCustomError("moment", REMEDY)


Moment = Annotated[
    datetime,
    Strict(False),
    WrapValidator(_in_utc),
    PlainSerializer(timestamp, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""In UTC, to the microsecond; what a message says more exactly is cut off."""


def _end(value: object, read: ValidatorFunctionWrapHandler) -> datetime:
    """Refuse an end that is none, or that others would read as another one."""
    if isinstance(value, str) and (parts := _RFC_3339.fullmatch(value)):
        if parts["second"] == "60":
            raise _end_fault("must not be in a leap second: use the second after it")
        if len(parts["fraction"] or "") > NANOSECONDS:
            raise _end_fault("must have nine digits after the second at most; six of them count")
        if value.startswith(str(FIRST_YEAR_WITHOUT_ENDS)):
            raise _end_fault(_TOO_LATE)
    end = _in_utc(value, read)
    if end.year >= FIRST_YEAR_WITHOUT_ENDS:
        raise _end_fault(_TOO_LATE)
    return end


def _end_fault(remedy: str) -> PydanticCustomError:
    return PydanticCustomError("end", "{remedy}", {"remedy": remedy})


_TOO_LATE: Final = "must be before the year 9999: leave it out for a consent without an end"

End = Annotated[
    datetime,
    Strict(False),
    WrapValidator(_end),
    PlainSerializer(timestamp, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""When a consent ends by itself, in UTC, to the microsecond: the first moment without it."""
