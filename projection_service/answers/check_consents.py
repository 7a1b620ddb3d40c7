"""Answers CheckConsents: one statement for all that asks the present, one for all of the past."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
from pydantic_core import to_json

from projection_service.answers.history_queries import unknown_past
from projection_service.answers.read_questions import Asked, Questions
from projection_service.answers.version_waits import too_early
from shared.messages.queries import Actor, QueryFailed, Question
from shared.messages.timestamp import timestamp
from shared.postgres.connection import Queryable
from shared.postgres.statements import statement
from shared.rabbitmq.query_server import invalid
from shared.values.oversized import LARGEST_CHECKS
from shared.values.vocabulary import RECORD_TYPES, RecordType, record_types

_CHECK_CONSENTS = statement("projection_service", "check_consents")
_CHECKED_CONSENTS = statement("projection_service", "checked_consents")

Json: TypeAlias = dict[str, Any]


class Basis(NamedTuple):
    """A consent by which a yes is given."""

    number: int
    """Of the actor who holds it, among all who are asked about."""
    actor: Actor
    event_id: UUID | None
    command_id: UUID | None
    since: datetime | None
    until: datetime | None

    def stands_longer_than(self, other: "Basis") -> bool:
        """Compare the ends; of two that stand as long, the actor named first holds the better."""
        if self.until == other.until:
            return self.number < other.number
        return other.until is not None and (self.until is None or self.until > other.until)


Refusal = Callable[[str], QueryFailed | None]
"""Says why nothing can be said of a patient; None where something can."""


class Checked(NamedTuple):
    """The answer to a CheckConsents or HasConsent, encoded, and how its questions were answered."""

    body: bytes
    status: str
    answers: Sequence[str]
    """`yes`, `no`, or the name of an error, for each question."""

    def to_json(self) -> bytes:
        """Return the answer as it is sent."""
        return self.body


@dataclass(slots=True)
class _Found:
    """What was found for one question."""

    version: int = 0
    known_since: datetime | None = None
    consents: dict[RecordType, Basis] = field(default_factory=dict)
    """By record type; of several the one that stands longest."""


class Checks:
    """Answers many questions at once from the read model."""

    def __init__(self, database: Queryable, refusal: Refusal) -> None:
        self._database = database
        self._refusal = refusal

    async def check(self, asked: Sequence[Questions]) -> list[Checked]:
        """Answer all questions of these messages."""
        every = [question for questions in asked for question in questions.each]
        found = [_Found() for _ in every]
        both = zip(every, found, strict=True)
        wanted = [(question, here) for question, here in both if isinstance(question, Question)]
        await self._look_up_present([one for one in wanted if one[0].at is None])
        await self._look_up_past([one for one in wanted if one[0].at is not None])
        answers = map(self._answer, every, found)
        return [_encode([next(answers) for _ in questions.each]) for questions in asked]

    def _answer(self, asked: Asked, found: _Found) -> Json:
        """Answer one question, unless nothing can be said of its patient."""
        if isinstance(asked, Question) and (refused := self._refusal(asked.patient_id)):
            return _failed(refused)
        return _answer(asked, found)

    async def _look_up_present(self, wanted: Sequence[tuple[Question, _Found]]) -> None:
        if wanted:
            _note(wanted, await self._database.fetch(_CHECK_CONSENTS, *_columns(wanted)))

    async def _look_up_past(self, wanted: Sequence[tuple[Question, _Found]]) -> None:
        if wanted:
            ats = [question.at for question, _ in wanted for _ in question.actors]
            arguments = (*_columns(wanted), ats, list(RECORD_TYPES))
            _note(wanted, await self._database.fetch(_CHECKED_CONSENTS, *arguments))


def _columns(wanted: Sequence[tuple[Question, _Found]]) -> Iterator[Sequence[str]]:
    """Turn questions into the columns that statements take: a row for each of their actors."""
    rows = [
        (question.patient_id, actor.entity_name, actor.entity_id, question.permission)
        for question, _ in wanted
        for actor in question.actors
    ]
    return zip(*rows, strict=True)


def _note(wanted: Sequence[tuple[Question, _Found]], rows: Sequence[asyncpg.Record]) -> None:
    """Note of each question by which consents its actors hold what it asks about."""
    places = [(found, actor) for question, found in wanted for actor in question.actors]
    for number, version, record_type, event, command, since, until, *known_since in rows:
        found, actor = places[number - 1]
        found.version = version
        if known_since:
            (found.known_since,) = known_since
        if record_type is not None:
            held = Basis(number, actor, event, command, since, until)
            best = found.consents.get(record_type)
            if best is None or held.stands_longer_than(best):
                found.consents[record_type] = held


def _answer(asked: Asked, found: _Found) -> Json:
    """Write an answer as ConsentChecked and QueryFailed have it: a model for each takes longer."""
    if isinstance(asked, QueryFailed):
        return _failed(asked)
    if found.version < asked.min_version:
        return _failed(too_early(found.version))
    if asked.at is not None and (unknown := unknown_past(asked.at, found.known_since)):
        return _failed(unknown)
    return _checked(record_types(asked.permission), found)


def _checked(wanted: Sequence[RecordType], found: _Found) -> Json:
    """Write what is granted of this, what is missing, and by which consents."""
    granted: list[RecordType] = []
    missing: list[RecordType] = []
    ends: list[datetime] = []
    basis: list[Json] = []
    for record_type in wanted:
        held = found.consents.get(record_type)
        if held is None:
            missing.append(record_type)
            continue
        granted.append(record_type)
        if held.until is not None:
            ends.append(held.until)
        if named := _basis(record_type, held):
            basis.append(named)
    answer: Json = {
        "status": "ok",
        "has_consent": not missing,
        "version": found.version,
        "granted": granted,
        "missing": missing,
        "basis": basis,
    }
    if ends and not missing:
        answer["valid_until"] = timestamp(min(ends))
    return answer


def _failed(failed: QueryFailed) -> Json:
    return failed.model_dump(exclude_none=True)


def _basis(record_type: RecordType, held: Basis) -> Json | None:
    """Name a consent; None where it is older than what is known of the past."""
    if held.command_id is None or held.since is None:
        return None
    basis: Json = {
        "record_type": record_type,
        "entity_name": held.actor.entity_name,
        "entity_id": held.actor.entity_id,
    }
    if held.event_id is not None:
        basis["event_id"] = str(held.event_id)
    basis["command_id"] = str(held.command_id)
    basis["since"] = timestamp(held.since)
    if held.until is not None:
        basis["until"] = timestamp(held.until)
    return basis


def _encode(answers: Sequence[Json]) -> Checked:
    """Encode the answers; say how many fit where they are too large together."""
    body = _body(answers)
    if len(body) <= LARGEST_CHECKS:
        return Checked(body, "ok", [_word(answer) for answer in answers])
    failed = _too_large(answers, len(body))
    return Checked(failed.to_json(), failed.error, [failed.error] * len(answers))


def _body(answers: Sequence[Json]) -> bytes:
    return to_json({"status": "ok", "answers": answers})


def _word(answer: Json) -> str:
    if answer["status"] == "error":
        return str(answer["error"])
    return "yes" if answer["has_consent"] else "no"


def _too_large(answers: Sequence[Json], size: int) -> QueryFailed:
    room = LARGEST_CHECKS - len(_body([])) + 1
    sizes = accumulate(len(to_json(answer)) + 1 for answer in answers)
    fit = sum(1 for end in sizes if end <= room)
    return invalid(
        "questions",
        f"have an answer of {size:,} bytes, and at most {LARGEST_CHECKS:,} are sent: "
        f"the first {fit} fit, ask the others after them",
    )
