"""Reads what others sent, and turns pydantic's findings into details that name the remedy."""

import json
from collections import Counter
from itertools import islice
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, from_json, to_json

from shared.messages.replies import Detail

MOST_DETAILS: Final = 20
LONGEST_FIELD: Final = 64
LARGE: Final = 8_192
"""Bytes; a well-formed command or query is smaller unless it is padded with white space."""
MOST_FIELDS: Final = 100

Model = TypeVar("Model", bound=BaseModel)

_REMEDIES: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this message; remove it",
    "model_type": "must be a JSON object",
}


def read_json(model: type[Model], body: bytes) -> Model:
    """Read a JSON object whose fields are the model's, each given once.

    Raises ValidationError. Of two fields with one name other readers than ours may take the other
    one, and decide about something else; so neither is taken.
    """
    found = model.model_validate_json(body if len(body) <= LARGE else _without_flood(model, body))
    if (twice := _given_twice(found, body)) is not None:
        raise _field_fault(model, twice, "is given twice: give it once")
    return found


def _without_flood(model: type[BaseModel], body: bytes) -> bytes:
    """Leave only some of very many unknown fields: each would become an error to describe."""
    try:
        fields = from_json(body)
    except ValueError:
        return body
    if not isinstance(fields, dict) or len(fields) <= MOST_FIELDS:
        return body
    known = {name: value for name, value in fields.items() if name in model.model_fields}
    return to_json({**dict(islice(fields.items(), MOST_FIELDS)), **known})


def _given_twice(found: BaseModel, body: bytes) -> str | None:
    """Find a name that an object in the body has twice, where there is one."""
    given = found.__pydantic_fields_set__
    texts = [type(found.__dict__[name]) for name in given].count(str)
    if body.count(b'"') == 2 * (len(given) + texts):
        return None  # two quotation marks to each name and text: there is room for no more
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        counted = Counter(name for name, _ in pairs)
        twice.extend(name for name, times in counted.items() if times > 1)

    json.loads(body, object_pairs_hook=look)
    return twice[0] if twice else None


def _field_fault(model: type[BaseModel], field: str, message: str) -> ValidationError:
    fault = PydanticCustomError("field_fault", "{message}", {"message": message})
    details = InitErrorDetails(type=fault, loc=(field,), input=None)
    return ValidationError.from_exception_data(model.__name__, [details])


def details_of(error: ValidationError) -> list[Detail]:
    """List what is wrong, at most 20 things, without repeating the values that were sent."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [_detail(mistake) for mistake in found[:MOST_DETAILS]]


def _detail(found: ErrorDetails) -> Detail:
    field = ".".join(str(part) for part in found["loc"])[:LONGEST_FIELD] or "body"
    return Detail(field=field, message=_REMEDIES.get(found["type"], found["msg"]))
