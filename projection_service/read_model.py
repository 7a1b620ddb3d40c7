"""The read model, over asyncpg: one statement changes it and moves the checkpoints."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, datetime
from itertools import chain, groupby
from operator import itemgetter
from typing import Final, NamedTuple

import asyncpg

from projection_service.consents import Consent
from projection_service.history import Spans
from shared.database import Queryable
from shared.errors import Fenced
from shared.queries import (
    Change,
    ConsentHistory,
    Consents,
    Entry,
    HasConsent,
    History,
    Period,
    Place,
    RequestMade,
)
from shared.statements import statement
from shared.vocabulary import RECORD_TYPES, Grantee

_PROJECT = statement("projection_service", "project")
_READ_CONSENTS = statement("projection_service", "read_consents")
_READ_PARKED = statement("projection_service", "read_parked")
_OPEN_CHECKPOINT = statement("projection_service", "open_checkpoint")
_LIST_CONSENTS = statement("projection_service", "list_consents")
_HAS_CONSENT = statement("projection_service", "has_consent")
_HAD_CONSENT = statement("projection_service", "had_consent")
_READ_HISTORY = statement("projection_service", "read_history")

_NO_CHANGE: Final = (None, None, None, None)
_BEGINNING: Final = ("", "", "", "", 0)
"""Before every place in a history."""


class Key(NamedTuple):
    """Whose consent for whom."""

    patient_id: str
    grantee: Grantee


@dataclass(frozen=True, slots=True)
class Move:
    """How far one partition's checkpoint moves."""

    epoch: int
    checkpoint: int
    position: int


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that is not applied, and why."""

    partition: int
    position: int
    patient_id: str
    event: str
    """JSON."""
    reason: str


@dataclass(slots=True)
class Changes:
    """What a batch of events does to the read model."""

    moves: dict[int, Move] = field(default_factory=dict)
    consents: dict[Key, Consent] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    parked: list[Parked] = field(default_factory=list)
    spans: Spans = field(default_factory=Spans)


@dataclass(frozen=True, slots=True)
class Held:
    """What one grantee may see, as of a patient's version."""

    version: int
    consent: Consent


@dataclass(frozen=True, slots=True)
class HeldOnce(Held):
    """What one grantee could see at some moment; `version` is today's."""

    known_since: datetime | None
    """What was in force before is not known any more, where this is given."""


class ReadModel:
    """Reads and changes the read model."""

    def __init__(self, database: Queryable) -> None:
        """Give it one connection to read and change within a transaction of yours."""
        self._database = database

    async def open_checkpoint(self, partition: int) -> int:
        """Return the position up to which a partition is projected."""
        position = await self._database.fetchval(_OPEN_CHECKPOINT, partition)
        return int(position or 0)

    async def read_consents(self, keys: Sequence[Key]) -> dict[Key, Consent]:
        """Read the consents that exist among these."""
        if not keys:
            return {}
        rows = await self._database.fetch(_READ_CONSENTS, *_key_columns(keys))
        return {
            Key(row["patient_id"], Grantee(row["entity_name"], row["entity_id"])): _consent(row)
            for row in rows
        }

    async def read_parked(self, patient_ids: Sequence[str]) -> dict[str, int]:
        """Read the first parked position of those of these patients who have one."""
        rows = await self._database.fetch(_READ_PARKED, patient_ids)
        return {row["patient_id"]: row["position"] for row in rows}

    async def project(self, changes: Changes) -> None:
        """Apply changes in one transaction; raises Fenced where another worker has taken over."""
        moves = sorted(changes.moves.items())
        consents = changes.consents.values()
        parked = changes.parked
        moved = await self._database.fetch(
            _PROJECT,
            [number for number, _ in moves],
            [move.epoch for _, move in moves],
            [move.checkpoint for _, move in moves],
            [move.position for _, move in moves],
            *_key_columns(list(changes.consents)),
            [",".join(sorted(one.permissions)) for one in consents],
            [",".join(sorted(one.requested)) for one in consents],
            list(changes.versions),
            list(changes.versions.values()),
            [one.partition for one in parked],
            [one.position for one in parked],
            [one.patient_id for one in parked],
            [one.event for one in parked],
            [one.reason for one in parked],
            *_span_columns(changes.spans),
        )
        if not moved:
            raise Fenced("another worker projects one of these partitions now")

    async def list_consents(self, patient_ids: Sequence[str]) -> dict[str, Consents]:
        """List what is granted and asked for, for each of these patients."""
        rows = await self._database.fetch(_LIST_CONSENTS, list(dict.fromkeys(patient_ids)))
        return {
            patient_id: _consents(patient_id, list(group))
            for patient_id, group in groupby(rows, key=itemgetter("patient_id"))
        }

    async def has_consent(self, asked: Sequence[HasConsent]) -> list[Held]:
        """Read what each of these grantees may see, in the order of the questions."""
        keys = [Key(one.patient_id, Grantee(one.entity_name, one.entity_id)) for one in asked]
        rows = await self._database.fetch(_HAS_CONSENT, *_key_columns(keys))
        return [Held(row["version"], Consent(frozenset(row["permissions"] or ()))) for row in rows]

    async def had_consent(self, asked: Sequence[HasConsent]) -> list[HeldOnce]:
        """Read what each of these could see at the moment `at` of the question, in their order."""
        keys = [Key(one.patient_id, Grantee(one.entity_name, one.entity_id)) for one in asked]
        moments = [one.at for one in asked]
        rows = await self._database.fetch(
            _HAD_CONSENT, *_key_columns(keys), moments, list(RECORD_TYPES)
        )
        return [
            HeldOnce(row["version"], Consent(frozenset(row["permissions"])), row["known_since"])
            for row in rows
        ]

    async def read_history(self, asked: Sequence[ConsentHistory]) -> list[History]:
        """Read a page of the history for each of these questions, in their order."""
        places = [_BEGINNING if one.after is None else _columns_of(one.after) for one in asked]
        rows = await self._database.fetch(
            _READ_HISTORY,
            [one.patient_id for one in asked],
            *zip(*places, strict=True),
            [one.limit + 1 for one in asked],
        )
        pages = groupby(rows, key=itemgetter("number"))
        return [_history(one, list(page)) for one, (_, page) in zip(asked, pages, strict=True)]


def _span_columns(spans: Spans) -> Iterable[Sequence[object]]:
    """Turn rows into the columns that `project` takes: 13 of what begins, 9 of what ends."""
    begun = [(*one.matter, *one.began, *(one.ended or _NO_CHANGE)) for one in spans.begun]
    ended = [(*matter, *change) for matter, change in spans.ended.items()]
    return chain(
        zip(*begun, strict=True) if begun else [()] * 13,
        zip(*ended, strict=True) if ended else [()] * 9,
    )


def _key_columns(keys: Sequence[Key]) -> tuple[list[str], list[str], list[str]]:
    return (
        [key.patient_id for key in keys],
        [key.grantee.entity for key in keys],
        [key.grantee.id for key in keys],
    )


def _consent(row: asyncpg.Record) -> Consent:
    return Consent(frozenset(row["permissions"]), frozenset(row["requested"]))


def _consents(patient_id: str, rows: Sequence[asyncpg.Record]) -> Consents:
    entries = [
        Entry(
            entity_name=row["entity_name"],
            entity_id=row["entity_id"],
            permissions=row["permissions"],
            requested=row["requested"],
        )
        for row in rows
        if row["entity_name"] is not None
    ]
    return Consents(patient_id=patient_id, version=rows[0]["version"], consents=entries)


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
    """Whether nothing is known of the past: the history is not filled yet."""
    return known_since.year == MAXYEAR


def _period(row: asyncpg.Record) -> Period:
    return Period(
        entity_name=row["entity_name"],
        entity_id=row["entity_id"],
        record_type=row["record_type"],
        granted=_change(row, "began"),
        revoked=_change(row, "ended") if row["ended_version"] else None,
    )


def _request(row: asyncpg.Record) -> RequestMade:
    return RequestMade(
        entity_name=row["entity_name"],
        entity_id=row["entity_id"],
        record_type=row["record_type"],
        asked=_change(row, "began"),
        answered=_change(row, "ended") if row["ended_version"] else None,
    )


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
