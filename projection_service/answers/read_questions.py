"""Reads a CheckConsents, so that a question that is at fault takes no other with it. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.messages.queries import MOST_QUESTIONS, CheckConsents, QueryFailed, Question
from shared.messages.replies import Detail
from shared.messages.validation import MOST_FIELDS, details_of, read_json

Asked: TypeAlias = Question | QueryFailed
"""A question, or the answer to one that is at fault."""

_TWICE: Final = "\x00twice"
"""A name that no field has: under it stands the name that an object had twice."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What a CheckConsents asks, in its order."""

    each: Sequence[Asked]

    @property
    def actors(self) -> int:
        """Count all actors who are asked about."""
        return sum(len(one.actors) for one in self.each if isinstance(one, Question))

    @property
    def needs(self) -> dict[str, int]:
        """Return which patients must be projected to which version before it is answered."""
        needs: dict[str, int] = {}
        for question in self.each:
            if isinstance(question, Question) and question.min_version:
                before = needs.get(question.patient_id, 0)
                needs[question.patient_id] = max(before, question.min_version)
        return needs


class _Envelope(BaseModel):
    """A CheckConsents whose questions are not read yet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: Annotated[list[Any], Field(min_length=1, max_length=MOST_QUESTIONS)]


def read_questions(body: bytes) -> Questions:
    """Read all questions; raises ValidationError where the message itself is at fault."""
    try:
        asked = CheckConsents.model_validate_json(body).questions
    except ValidationError:
        return _read_one_by_one(body)
    if body.count(b'"') == 2 + sum(map(_quotation_marks, asked)):
        return Questions(asked)  # no room for a field that is given twice
    return _read_one_by_one(body)


def _quotation_marks(question: Question) -> int:
    """Count those that a question has which is written plainly: two to each name and text."""
    given = question.model_fields_set
    texts = 1 + ("permission" in given) + (question.at is not None)
    return 2 * (len(given) + texts) + 8 * len(question.actors)


def _read_one_by_one(body: bytes) -> Questions:
    fields = _fields(body)
    if fields is None or _TWICE in fields:
        read_json(_Envelope, body)  # says what is wrong
    envelope = _Envelope.model_validate(dict(islice((fields or {}).items(), MOST_FIELDS)))
    return Questions([_read(question) for question in envelope.questions])


def _fields(body: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of some of its fields: each of very many would be an error to describe."""
    found = dict(islice(pairs, MOST_FIELDS))
    if len(found) < min(len(pairs), MOST_FIELDS):
        names = [name for name, _ in pairs]
        found[_TWICE] = next(name for name in names if names.count(name) > 1)
    return found


def _read(question: Any) -> Asked:  # noqa: ANN401 - whatever JSON holds
    for path, twice in _given_twice(question):
        return _at_fault(
            [Detail(field=f"{path}{twice}"[:64], message="is given twice: give it once")]
        )
    try:
        return Question.model_validate_json(json.dumps(question))
    except ValidationError as error:
        return _at_fault(details_of(error))


def _given_twice(question: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Find the names that this question, or one of its actors, has twice."""
    if not isinstance(question, Mapping):
        return
    if _TWICE in question:
        yield "", question[_TWICE]
    actors = question.get("actors")
    for number, actor in enumerate(actors if isinstance(actors, list) else ()):
        if isinstance(actor, Mapping) and _TWICE in actor:
            yield f"actors.{number}.", actor[_TWICE]


def _at_fault(details: list[Detail]) -> QueryFailed:
    fields = ", ".join(detail.field for detail in details)
    return QueryFailed(
        error="validation_error", message=f"the question is not valid: {fields}", details=details
    )
