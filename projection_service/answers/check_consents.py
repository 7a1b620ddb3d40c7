"""Answers CheckConsents: one statement for all that asks the present, one for all of the past."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import asyncpg

from projection_service.answers.read_questions import Asked, Questions
from projection_service.answers.version_waits import too_early
from projection_service.history_queries import unknown_past
from shared.messages.queries import Actor, Basis, ConsentChecked, QueryFailed, Question
from shared.postgres.connection import Queryable
from shared.postgres.statements import statement
from shared.rabbitmq.query_server import invalid
from shared.values.oversized import LARGEST_CHECKS
from shared.values.vocabulary import RECORD_TYPES, record_types

_CHECK_CONSENTS = statement("projection_service", "check_consents")
_CHECKED_CONSENTS = statement("projection_service", "checked_consents")

_BEFORE: Final = b'{"status":"ok","answers":['
_AFTER: Final = b"]}"


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer to a CheckConsents, encoded, and how its questions were answered."""

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
    basis: dict[str, tuple[asyncpg.Record, Actor]] = field(default_factory=dict)
    """For each record type that is granted, by which row, and to which actor."""


class Checks:
    """Answers many questions at once from the read model."""

    def __init__(self, database: Queryable) -> None:
        self._database = database

    async def check(self, asked: Sequence[Questions]) -> list[Checked]:
        """Answer all questions of these messages."""
        every = [question for questions in asked for question in questions.each]
        found = [_Found() for _ in every]
        numbered = list(enumerate(every))
        present = [(n, q) for n, q in numbered if isinstance(q, Question) and q.at is None]
        past = [(n, q) for n, q in numbered if isinstance(q, Question) and q.at is not None]
        if present:
            _note(found, present, await self._database.fetch(_CHECK_CONSENTS, *_columns(present)))
        if past:
            ats = [question.at for _, question in past for _ in question.actors]
            rows = await self._database.fetch(
                _CHECKED_CONSENTS, *_columns(past), ats, list(RECORD_TYPES)
            )
            _note(found, past, rows)
        answers = iter([_answer(*both) for both in zip(every, found, strict=True)])
        return [_encode([next(answers) for _ in questions.each]) for questions in asked]


def _columns(asked: Sequence[tuple[int, Question]]) -> Iterator[list[str]]:
    """Turn questions into the columns that statements take: a row for each of their actors."""
    questions = [question for _, question in asked]
    yield [question.patient_id for question in questions for _ in question.actors]
    yield [actor.entity_name for question in questions for actor in question.actors]
    yield [actor.entity_id for question in questions for actor in question.actors]
    yield [question.permission for question in questions for _ in question.actors]


def _note(
    found: Sequence[_Found],
    asked: Sequence[tuple[int, Question]],
    rows: Sequence[asyncpg.Record],
) -> None:
    """Note of each question by which consents its actors hold what it asks about."""
    places = [(number, actor) for number, question in asked for actor in question.actors]
    for row in rows:
        number, actor = places[row["number"] - 1]
        one = found[number]
        one.version = row["version"]
        one.known_since = row.get("known_since")
        record_type = row["record_type"]
        if record_type is not None:
            best = one.basis.get(record_type)
            if best is None or row["number"] < best[0]["number"]:
                one.basis[record_type] = (row, actor)


def _answer(asked: Asked, found: _Found) -> ConsentChecked | QueryFailed:
    if isinstance(asked, QueryFailed):
        return asked
    if found.version < asked.min_version:
        return too_early(found.version)
    if asked.at is not None and (failed := unknown_past(asked.at, found.known_since)):
        return failed
    wanted = record_types(asked.permission)
    granted = [record_type for record_type in wanted if record_type in found.basis]
    return ConsentChecked.model_construct(
        has_consent=len(granted) == len(wanted),
        version=found.version,
        granted=granted,
        missing=[record_type for record_type in wanted if record_type not in found.basis],
        basis=[
            _basis(*found.basis[record_type])
            for record_type in granted
            if found.basis[record_type][0]["command_id"] is not None
        ],
    )


def _basis(row: asyncpg.Record, actor: Actor) -> Basis:
    return Basis.model_construct(
        record_type=row["record_type"],
        entity_name=actor.entity_name,
        entity_id=actor.entity_id,
        event_id=row["event_id"],
        command_id=row["command_id"],
        since=row["since"],
    )


def _encode(answers: Sequence[ConsentChecked | QueryFailed]) -> Checked:
    """Encode the answers; say how many fit where they are too large together."""
    encoded = [answer.to_json() for answer in answers]
    body = b"".join((_BEFORE, b",".join(encoded), _AFTER))
    if len(body) > LARGEST_CHECKS:
        failed = _too_large(encoded, len(body))
        return Checked(failed.to_json(), failed.error, [failed.error] * len(answers))
    return Checked(body, "ok", [_word(answer) for answer in answers])


def _word(answer: ConsentChecked | QueryFailed) -> str:
    if isinstance(answer, QueryFailed):
        return answer.error
    return "yes" if answer.has_consent else "no"


def _too_large(encoded: Sequence[bytes], size: int) -> QueryFailed:
    room, fit = LARGEST_CHECKS - len(_BEFORE) - len(_AFTER) + 1, 0
    while room >= len(encoded[fit]) + 1:
        room -= len(encoded[fit]) + 1
        fit += 1
    return invalid(
        "questions",
        f"have an answer of {size:,} bytes, and at most {LARGEST_CHECKS:,} are sent: "
        f"the first {fit} fit, ask the others after them",
    )
