"""The read model, over asyncpg: one statement changes it and moves the checkpoints."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Final
from uuid import UUID

import asyncpg
from immutables import Map
from pydantic import TypeAdapter

from projection_service.projections.changes import Changes, Held, Key, Move
from projection_service.projections.consents import NO_ENDS, Consent, Ends
from projection_service.projections.spans import Ending, Span
from shared.errors import Fenced, RowLocked
from shared.event_log.set_back import FIRST_GENERATION, LogPlace
from shared.messages.queries import Consents, Entry, GranteePlace, HasConsent, ListConsents
from shared.messages.timestamp import Moment
from shared.postgres.connection import Queryable
from shared.postgres.kept_connection import KeptConnection
from shared.postgres.statements import Row, as_json, statement
from shared.values.partition import Lease
from shared.values.vocabulary import Grantee, RecordType

TABLES: Final = (
    "checkpoints",
    "patient_consent",
    "patients",
    "parked_events",
    "history_horizon",
    "consent_history",
)
"""Every table whose rows follow from the log: `rebuild` fills them anew.

In the order in which every statement names them: whoever locks them in this order, as a rebuild
does, waits for statements that have begun, and never for one that waits for it.
"""

_PROJECT = statement("projection_service", "project")
_READ_CONSENTS = statement("projection_service", "read_consents")
_READ_PARKED = statement("projection_service", "read_parked")
_OPEN_CHECKPOINT = statement("projection_service", "open_checkpoint")
_MARK_SET_BACK = statement("projection_service", "mark_set_back")
_READ_SET_BACK = statement("projection_service", "read_set_back")
_READ_LIVE_POSITIONS = statement("projection_service", "read_live_positions")
_FOLLOWED_LOG = statement("projection_service", "read_live_log")
_FOLLOW_LOG = statement("projection_service", "follow_log")
_LIST_CONSENTS = statement("projection_service", "list_consents")
_HAS_CONSENT = statement("projection_service", "has_consent")
_READ_VERSIONS = statement("projection_service", "read_versions")

_ENDS: Final[TypeAdapter[dict[RecordType, Moment]]] = TypeAdapter(dict[RecordType, Moment])


class ReadModel:
    """Reads and changes the read model."""

    def __init__(self, database: Queryable, kept: KeptConnection | None = None) -> None:
        """Give it one connection to read and change within a transaction of yours.

        What is done again and again is done on a connection that is kept, where there is one.
        """
        self._database = database
        self._kept = kept or database

    async def open_checkpoint(self, partition: int) -> LogPlace:
        """Return the last event that is projected of a partition."""
        row = await self._database.fetchrow(_OPEN_CHECKPOINT, partition)
        assert row is not None  # noqa: S101 - it returns one row
        generation = row["generation"] or (None if row["position"] else FIRST_GENERATION)
        return LogPlace(row["position"], row["event_id"], generation)

    async def read_places(self) -> dict[int, LogPlace]:
        """Read the last event that is projected, of every partition."""
        rows = await self._database.fetch(_READ_LIVE_POSITIONS)
        return {
            row["partition"]: LogPlace(row["position"], row["event_id"], row["generation"])
            for row in rows
        }

    async def mark_set_back(self, lease: Lease, *, is_set_back: bool) -> None:
        """Say whether the log lacks what a partition's checkpoint stands on."""
        await self._database.execute(_MARK_SET_BACK, lease.partition, lease.epoch, is_set_back)

    async def read_set_back(self) -> dict[int, datetime]:
        """Read which partitions stand on what the log does not have any more, and since when."""
        rows = await self._database.fetch(_READ_SET_BACK)
        return {row["partition"]: row["since"] for row in rows}

    async def followed_log(self) -> UUID | None:
        """Return which log is followed; None where that is not known yet."""
        log_id: UUID | None = await self._database.fetchval(_FOLLOWED_LOG)
        return log_id

    async def follow_log(self, log_id: UUID) -> UUID:
        """Remember which log is followed, the first time; return which one is."""
        return UUID(str(await self._database.fetchval(_FOLLOW_LOG, log_id)))

    async def read_consents(self, keys: Sequence[Key]) -> dict[Key, Consent]:
        """Read the consents that exist among these."""
        if not keys:
            return {}
        rows = await self._database.fetch(_READ_CONSENTS, *key_columns(keys))
        return {
            Key(row["patient_id"], Grantee(row["entity_name"], row["entity_id"])): _consent(row)
            for row in rows
        }

    async def read_parked(self, patient_ids: Sequence[str]) -> dict[str, int]:
        """Read the first parked position of those of these patients who have one."""
        rows = await self._database.fetch(_READ_PARKED, patient_ids)
        return {row["patient_id"]: row["position"] for row in rows}

    async def project(self, changes: Changes) -> None:
        """Apply changes in one transaction.

        Raises Fenced where another worker has taken over, RowLocked where somebody else holds on to
        a row for longer than is waited for; nothing is changed then.
        """
        try:
            moved = await self._kept.fetch(_PROJECT, *map(as_json, _rows(changes)))
        except asyncpg.LockNotAvailableError as error:
            raise RowLocked("somebody else has locked a row that is to be changed") from error
        if not moved:
            raise Fenced("another worker projects one of these partitions now")

    async def read_versions(self, patient_ids: Sequence[str]) -> dict[str, int]:
        """Read how far each of these patients is projected; one of whom nothing is, is left out."""
        rows = await self._database.fetch(_READ_VERSIONS, patient_ids)
        return {row["patient_id"]: row["version"] for row in rows}

    async def list_consents(self, asked: Sequence[ListConsents]) -> list[Consents]:
        """Read a page of what is granted and asked for, for each question, in their order."""
        places = [
            (question.after.entity_name, question.after.entity_id) if question.after else ("", "")
            for question in asked
        ]
        rows = await self._database.fetch(
            _LIST_CONSENTS,
            [question.patient_id for question in asked],
            *zip(*places, strict=True),
            [question.limit + 1 for question in asked],
        )
        pages = groupby(rows, key=itemgetter("number"))
        return [
            _consents(question, list(page))
            for question, (_, page) in zip(asked, pages, strict=True)
        ]

    async def has_consent(self, asked: Sequence[HasConsent]) -> list[Held]:
        """Read what each of these grantees may see, in the order of the questions."""
        keys = [
            Key(question.patient_id, Grantee(question.entity_name, question.entity_id))
            for question in asked
        ]
        rows = await self._kept.fetch(_HAS_CONSENT, *key_columns(keys))
        return [
            Held(
                row["version"],
                Consent(frozenset(row["permissions"] or ()), ends=_read_ends(row["ends"])),
            )
            for row in rows
        ]


def _rows(changes: Changes) -> Iterator[list[Row]]:
    """Give the parameters of `project`, in their order."""
    yield [_move_row(*move) for move in sorted(changes.moves.items())]
    yield [_consent_row(*changed) for changed in changes.consents.items()]
    versions = changes.versions.items()
    yield [{"patient_id": patient_id, "version": version} for patient_id, version in versions]
    yield [asdict(parked) for parked in changes.parked]
    yield [_begun_row(span) for span in changes.spans.begun]
    yield [matter._asdict() | _ending(ending) for matter, ending in changes.spans.ended.items()]


def _move_row(partition: int, move: Move) -> Row:
    return {
        "partition": partition,
        "epoch": move.epoch,
        "checkpoint": move.checkpoint,
        "position": move.position,
        "event_id": move.event_id,
        "generation": move.generation,
    }


def _consent_row(key: Key, consent: Consent) -> Row:
    return {
        "patient_id": key.patient_id,
        "entity_name": key.grantee.entity,
        "entity_id": key.grantee.id,
        "permissions": _array(consent.permissions),
        "requested": _array(consent.requested),
        "ends": _written(consent.ends),
        "requested_ends": _written(consent.requested_ends),
    }


def _begun_row(span: Span) -> Row:
    began = span.began
    row = span.matter._asdict() | {
        "began_version": began.version,
        "began_at": began.at,
        "began_command": began.command_id,
        "began_issuer": began.issued_by,
        "began_event": began.event_id,
        "expires_at": span.expires_at,
    }
    return row | _ending(span.ended) if span.ended else row


def _ending(ending: Ending) -> Row:
    cause = ending.cause
    return {
        "ended_version": cause.version,
        "ended_at": cause.at,
        "ended_command": cause.command_id,
        "ended_issuer": cause.issued_by,
        "ended_cause": ending.how,
    }


def key_columns(keys: Sequence[Key]) -> tuple[list[str], list[str], list[str]]:
    """Turn keys into the columns that statements take."""
    return (
        [key.patient_id for key in keys],
        [key.grantee.entity for key in keys],
        [key.grantee.id for key in keys],
    )


def _consent(row: asyncpg.Record) -> Consent:
    return Consent(
        frozenset(row["permissions"]),
        frozenset(row["requested"]),
        _read_ends(row["ends"]),
        _read_ends(row["requested_ends"]),
    )


@cache
def _array(names: frozenset[RecordType]) -> str:
    """Write an array as PostgreSQL does: it reads that faster than one in JSON."""
    return f"{{{','.join(sorted(names))}}}"


def _written(ends: Ends) -> str | None:
    """Write ends as JSON; nothing where there are none."""
    if not ends:
        return None
    return _ENDS.dump_json({named: ends[named] for named in sorted(ends)}).decode()


def _read_ends(text: str | None) -> Ends:
    return NO_ENDS if text is None else Map(_ENDS.validate_json(text))


def ends_of(names: Sequence[RecordType], ends: str | None) -> dict[RecordType, datetime] | None:
    """Read the ends of these, where they have any, from JSON."""
    found = _read_ends(ends)
    return {name: found[name] for name in names if name in found} or None


def _consents(asked: ListConsents, rows: Sequence[asyncpg.Record]) -> Consents:
    """Make a page of one row more than asked for; that one says that there is a next page."""
    entries = [
        Entry(
            entity_name=row["entity_name"],
            entity_id=row["entity_id"],
            permissions=row["permissions"],
            requested=row["requested"],
            until=ends_of(row["permissions"], row["ends"]),
            requested_until=ends_of(row["requested"], row["requested_ends"]),
        )
        for row in rows[: asked.limit]
        if row["entity_name"] is not None
    ]
    last = entries[-1] if len(rows) > asked.limit else None
    return Consents(
        patient_id=asked.patient_id,
        version=rows[0]["version"],
        consents=entries,
        next=last and GranteePlace(entity_name=last.entity_name, entity_id=last.entity_id),
    )
