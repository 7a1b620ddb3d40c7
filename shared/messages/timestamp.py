"""A moment in a message: RFC 3339, with its zone."""

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

from shared.messages.cloud_event import timestamp

REMEDY: Final = "must be a time with its zone, like 2026-11-23T08:00:00Z"
_RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,30})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


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
