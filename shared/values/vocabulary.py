"""The values of the domain: who may be granted what, and what an id looks like."""

import re
from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import AfterValidator, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.values.legible import code_point, hidden_character, is_plain, uncomposed_character

Entity = Literal["patient", "doctor", "nurse"]
RecordType = Literal["exams", "consultations", "conditions", "er_visits"]
Target = Literal["exams", "consultations", "conditions", "er_visits", "all"]

ENTITIES: Final[tuple[Entity, ...]] = get_args(Entity)
RECORD_TYPES: Final[tuple[RecordType, ...]] = get_args(RecordType)

ID_LENGTH: Final = 128
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# The same in the regular expressions of JSON Schema, which know no `strip` and no categories.
_CONTROLS: Final = r"\u0000-\u001f\u007f-\u009f"
_SPACES: Final = r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_VISIBLE_ENDS: Final = f"^[^{_CONTROLS}{_SPACES}]([^{_CONTROLS}]*[^{_CONTROLS}{_SPACES}])?$"
_HIDDEN: Final = (
    rf"{_CONTROLS}{_SPACES[1:]}\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    r"\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    r"\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
)
_NOTHING_HIDDEN: Final = f"^[^{_HIDDEN} ]([^{_HIDDEN}]*[^{_HIDDEN} ])?$"
_ABOUT_IDS: Final = (
    "In NFC, of characters that can be seen, and plain spaces within; "
    "the pattern says it of the Basic Multilingual Plane alone, and not of what is unassigned."
)


def _without_control_characters(text: str) -> str:
    if not text.isprintable() and (found := _CONTROL.search(text)):
        raise PydanticCustomError(
            "control_character",
            "must not contain control characters, and {character} is one: leave it out",
            {"character": code_point(found[0])},
        )
    return text


def _trimmed(text: str) -> str:
    if text != text.strip():
        raise PydanticCustomError("white_space", "must not begin or end with white space")
    return text


def _recorded_id(text: str) -> str:
    if is_plain(text) and not (text.startswith(" ") or text.endswith(" ")):
        return text
    return _trimmed(_without_control_characters(text))


def _legible(text: str) -> str:
    """Refuse what a person could take for something else without seeing any difference."""
    if is_plain(text):
        return text
    _without_control_characters(text)
    if (hidden := hidden_character(text)) is not None:
        raise PydanticCustomError(
            "hidden_character",
            "must not contain {character}, which can't be seen, so that two ids would look the "
            "same: leave it out",
            {"character": code_point(hidden)},
        )
    if (uncomposed := uncomposed_character(text)) is not None:
        raise PydanticCustomError(
            "not_nfc",
            "must be in NFC, Unicode's composed form, which {character} is not here, so that two "
            "ids would look the same: normalize it to NFC",
            {"character": code_point(uncomposed)},
        )
    return text


def _legible_id(text: str) -> str:
    return _legible(_trimmed(text))


Id = Annotated[
    str,
    StringConstraints(min_length=1, max_length=ID_LENGTH, strict=True),
    AfterValidator(_legible_id),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": ID_LENGTH,
            "pattern": _NOTHING_HIDDEN,
            "description": _ABOUT_IDS,
        }
    ),
]
"""The id of a patient or of anybody else, as it may enter the log: 1 to 128 code points in NFC,
each of which can be seen."""

RecordedId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=ID_LENGTH, strict=True),
    AfterValidator(_recorded_id),
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": ID_LENGTH, "pattern": _VISIBLE_ENDS}
    ),
]
"""An id as it may stand in the log: older ones may hold characters that can't be seen.

What only finds what is recorded takes it so: events, queries, and taking consent back."""

Line = Annotated[
    str,
    AfterValidator(_without_control_characters),
    WithJsonSchema({"type": "string", "pattern": f"^[^{_CONTROLS}]*$"}),
]
"""Text that is kept with the events: one line, of any length."""

LegibleLine = Annotated[str, AfterValidator(_legible)]
"""Text from a message property that is kept with the events from now on: nothing is hidden in it,
and it may be as long as AMQP allows."""


class Grantee(NamedTuple):
    """Somebody who may be allowed to see a patient's records."""

    entity: Entity
    id: str

    def __str__(self) -> str:
        return f"{self.entity} {self.id}"


def record_types(target: Target) -> tuple[RecordType, ...]:
    """Every record type that a target names; `all` names them all."""
    return RECORD_TYPES if target == "all" else (target,)
