"""Turns pydantic's findings into details that name the field and the remedy."""

from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shared.replies import Detail

MOST_DETAILS: Final = 20
LONGEST_FIELD: Final = 64

_REMEDIES: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this message; remove it",
    "model_type": "must be a JSON object",
}


def details_of(error: ValidationError) -> list[Detail]:
    """List what is wrong, at most 20 things, without repeating the values that were sent."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [_detail(one) for one in found[:MOST_DETAILS]]


def _detail(found: ErrorDetails) -> Detail:
    field = ".".join(str(part) for part in found["loc"])[:LONGEST_FIELD] or "body"
    return Detail(field=field, message=_REMEDIES.get(found["type"], found["msg"]))
