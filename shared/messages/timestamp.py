"""A moment in a message: RFC 3339, with its zone; and the end of a consent, which is one."""

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    Strict,
    ValidationInfo,
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
_FAR_YEAR: Final = re.compile(r"\+?(9999|\d{5,})-", re.ASCII)
FIRST_YEAR_WITHOUT_ENDS: Final = 9999
"""Who writes it means *never*, and says so by leaving the end out."""
NANOSECONDS: Final = 9
"""Digits of a second's fraction that clocks give; more come from a mistake."""


@lru_cache(maxsize=64)
def timestamp(moment: datetime) -> str:
    """Write a UTC moment as RFC 3339 with all six digits of the microseconds.

    What is written together was mostly recorded at one moment: so it is remembered.
    """
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
    if isinstance(value, str):
        if _FAR_YEAR.match(value):
            raise _end_fault(_TOO_LATE)
        if parts := _RFC_3339.fullmatch(value):
            _refuse_what_others_read_otherwise(parts)
    end = _in_utc(value, read)
    if end.year >= FIRST_YEAR_WITHOUT_ENDS:
        raise _end_fault(_TOO_LATE)
    return end


def _refuse_what_others_read_otherwise(parts: re.Match[str]) -> None:
    if parts["second"] == "60":
        raise _end_fault("must not be in a leap second: use the second after it")
    if len(parts["fraction"] or "") > NANOSECONDS:
        raise _end_fault("must have nine digits after the second at most; six of them count")


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


def _no_null(value: object, info: ValidationInfo) -> object:
    """Refuse null in a message: who writes it may mean an end that could not be worked out."""
    if value is None and info.mode == "json":
        raise _end_fault("must not be null: leave it out for a consent without an end")
    return value


OptionalEnd = Annotated[
    End | None,
    BeforeValidator(_no_null),
    WithJsonSchema(
        {
            "description": "The first moment without it, to the microsecond: in the future, before "
            "the year 9999, in no leap second; left out for a consent without an end.",
            "type": "string",
            "format": "date-time",
        }
    ),
]
"""An end, or none; in a message it is left out then."""
