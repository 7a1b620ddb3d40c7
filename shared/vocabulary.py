"""The values of the domain: who may be granted what, and what an id looks like."""

import re
from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import AfterValidator, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

Entity = Literal["patient", "doctor", "nurse"]
RecordType = Literal["exams", "consultations", "conditions", "er_visits"]
Target = Literal["exams", "consultations", "conditions", "er_visits", "all"]

ENTITIES: Final[tuple[Entity, ...]] = get_args(Entity)
RECORD_TYPES: Final[tuple[RecordType, ...]] = get_args(RecordType)

ID_LENGTH: Final = 128
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# The same in the regular expressions of JSON Schema, which know no `strip`.
_CONTROLS: Final = r"\u0000-\u001f\u007f-\u009f"
_SPACES: Final = r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_VISIBLE_ENDS: Final = f"^[^{_CONTROLS}{_SPACES}]([^{_CONTROLS}]*[^{_CONTROLS}{_SPACES}])?$"


def _without_control_characters(text: str) -> str:
    if _CONTROL.search(text):
        raise PydanticCustomError("control_character", "must not contain control characters")
    return text


def _trimmed(text: str) -> str:
    if text != text.strip():
        raise PydanticCustomError("white_space", "must not begin or end with white space")
    return text


Id = Annotated[
    str,
    StringConstraints(min_length=1, max_length=ID_LENGTH, strict=True),
    AfterValidator(_without_control_characters),
    AfterValidator(_trimmed),
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": ID_LENGTH, "pattern": _VISIBLE_ENDS}
    ),
]
"""The id of a patient or of anybody else: 1 to 128 code points, nothing invisible at its ends."""

Line = Annotated[
    str,
    AfterValidator(_without_control_characters),
    WithJsonSchema({"type": "string", "pattern": f"^[^{_CONTROLS}]*$"}),
]
"""Text from a message property that is kept with the events: one line, any length AMQP allows."""


class Grantee(NamedTuple):
    """Somebody who may be allowed to see a patient's records."""

    entity: Entity
    id: str

    def __str__(self) -> str:
        return f"{self.entity} {self.id}"


def record_types(target: Target) -> tuple[RecordType, ...]:
    """Every record type that a target names; `all` names them all."""
    return RECORD_TYPES if target == "all" else (target,)
