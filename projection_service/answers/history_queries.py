"""Reads the past from the read model: what was in force at a moment, and the whole history."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, datetime
from itertools import groupby
from operator import itemgetter
from typing import Final

import asyncpg
from immutables import Map

from projection_service.projections.changes import Held, Key
from projection_service.projections.consents import Consent
from projection_service.read_model import key_columns
from shared.messages.queries import (
    Answered,
    Change,
    ConsentHistory,
    Ended,
    HasConsent,
    History,
    Period,
    Place,
    QueryFailed,
    RequestMade,
)
from shared.messages.timestamp import timestamp
from shared.postgres.connection import Queryable
from shared.postgres.statements import statement
from shared.rabbitmq.query_server import invalid
from shared.values.vocabulary import RECORD_TYPES, Grantee

_HAD_CONSENT = statement("projection_service", "had_consent")
_READ_HISTORY = statement("projection_service", "read_history")

_BEGINNING: Final = ("", "", "", "", 0)
"""Before every place in a history."""


@dataclass(frozen=True, slots=True)
class HeldOnce(Held):
    """What one grantee could see at some moment; `version` is today's."""

    known_since: datetime | None
    """What was in force before is not known any more, where this is given."""


class Past:
    """Answers from the history."""

    def __init__(self, database: Queryable) -> None:
        self._database = database

    async def had_consent(self, asked: Sequence[HasConsent]) -> list[HeldOnce]:
        """Read what each of these could see at the moment `at` of the question, in their order."""
        keys = [
            Key(question.patient_id, Grantee(question.entity_name, question.entity_id))
            for question in asked
        ]
        moments = [question.at for question in asked]
        rows = await self._database.fetch(
            _HAD_CONSENT, *key_columns(keys), moments, list(RECORD_TYPES)
        )
        return [HeldOnce(row["version"], _held(row), row["known_since"]) for row in rows]

    async def read_history(self, asked: Sequence[ConsentHistory]) -> list[History]:
        """Read a page of the history for each of these questions, in their order."""
        places = [
            _BEGINNING if question.after is None else _columns_of(question.after)
            for question in asked
        ]
        rows = await self._database.fetch(
            _READ_HISTORY,
            [question.patient_id for question in asked],
            *zip(*places, strict=True),
            [question.limit + 1 for question in asked],
        )
        histories = []
        for question, (_, page) in zip(asked, groupby(rows, key=itemgetter("number")), strict=True):
            histories.append(_history(question, list(page)))
            await asyncio.sleep(0)  # one page at a time, so that a check is not held up by many
        return histories


def _held(row: asyncpg.Record) -> Consent:
    ends = zip(row["permissions"], row["ends"], strict=True)
    return Consent(
        frozenset(row["permissions"]),
        ends=Map((record_type, end) for record_type, end in ends if end is not None),
    )


def _columns_of(place: Place) -> tuple[str, str, str, str, int]:
    return (place.entity_name, place.entity_id, place.record_type, place.kind, place.version)


def _history(asked: ConsentHistory, rows: Sequence[asyncpg.Record]) -> History:
    """Make a page of one row more than asked for; that one says that there is a next page."""
    first, shown = rows[0], [row for row in rows[: asked.limit] if row["entity_name"] is not None]
    known_since = first["known_since"]
    return History(
        patient_id=asked.patient_id,
        version=first["version"],
        periods=[_period(row) for row in shown if row["kind"] == "period"],
        requests=[_request(row) for row in shown if row["kind"] == "request"],
        next=_place(shown[-1]) if len(rows) > asked.limit else None,
        complete=known_since is None,
        known_since=None if known_since is None or is_never(known_since) else known_since,
    )


def is_never(known_since: datetime) -> bool:
    """Whether nothing is known of the past: the horizon is at infinity, until a rebuild."""
    return known_since.year == MAXYEAR


def unknown_past(at: datetime, known_since: datetime | None) -> QueryFailed | None:
    """Say that a moment is too long ago to be answered with certainty."""
    if known_since is None:
        return None
    if is_never(known_since):  # PostgreSQL's infinity, which has no zone to compare with
        return invalid("at", "the past is not known here before a rebuild of the read model")
    if at >= known_since:
        return None
    return invalid(
        "at", f"the past is known since {timestamp(known_since)}; ask about then or later"
    )


def _period(row: asyncpg.Record) -> Period:
    return Period(
        entity_name=row["entity_name"],
        entity_id=row["entity_id"],
        record_type=row["record_type"],
        granted=_change(row, "began"),
        until=row["expires_at"],
        ended=_ended(row),
    )


def _ended(row: asyncpg.Record) -> Ended | None:
    """Say how a period ended; its own end counts from when it comes, recorded or not."""
    if row["ended_version"]:
        change = dict(_change(row, "ended"))
        return Ended(cause=row["ended_cause"] or "revoked", **change)
    return Ended(cause="expired", at=row["expires_at"]) if row["has_come"] else None


def _request(row: asyncpg.Record) -> RequestMade:
    return RequestMade(
        entity_name=row["entity_name"],
        entity_id=row["entity_id"],
        record_type=row["record_type"],
        asked=_change(row, "began"),
        until=row["expires_at"],
        answered=_answered(row),
    )


def _answered(row: asyncpg.Record) -> Answered | None:
    if not row["ended_version"]:
        return None
    return Answered(how=row["ended_cause"] or "granted", **dict(_change(row, "ended")))


def _change(row: asyncpg.Record, side: str) -> Change:
    return Change(
        at=row[f"{side}_at"],
        version=row[f"{side}_version"],
        command_id=row[f"{side}_command"],
        issued_by=row[f"{side}_issuer"],
    )


def _place(row: asyncpg.Record) -> Place:
    return Place(
        entity_name=row["entity_name"],
        entity_id=row["entity_id"],
        record_type=row["record_type"],
        kind=row["kind"],
        version=row["began_version"],
    )
