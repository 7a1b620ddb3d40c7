"""Answers ListPatients: whose records may somebody see, page by page."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

import asyncpg

from projection_service.read_model import ends_of
from shared.messages.queries import ListPatients, Patients, PatientSeen
from shared.postgres.connection import Queryable
from shared.postgres.statements import statement
from shared.values.vocabulary import record_types

LOOKED_AT: Final = 5_000
"""Consents that are looked at for a page: where few of them are listed, the page ends early."""

_LIST_PATIENTS = statement("projection_service", "list_patients")


class PatientLists:
    """Lists patients from the read model."""

    def __init__(self, database: Queryable) -> None:
        self._database = database

    async def list_patients(self, asked: Sequence[ListPatients]) -> list[Patients]:
        """Read a page for each question, in their order."""
        rows = await self._database.fetch(
            _LIST_PATIENTS,
            [question.entity_name for question in asked],
            [question.entity_id for question in asked],
            [question.after or "" for question in asked],
            [question.limit + 1 for question in asked],
            [",".join(record_types(q.permission)) if q.permission else "" for q in asked],
            LOOKED_AT,
        )
        pages = {number: list(page) for number, page in groupby(rows, key=itemgetter("number"))}
        return [
            _page(question, pages.get(number, [])) for number, question in enumerate(asked, start=1)
        ]


def _page(asked: ListPatients, rows: Sequence[asyncpg.Record]) -> Patients:
    """Make a page of one row more than asked for; that one, or one not seen, says there is more."""
    shown = rows[: asked.limit]
    more = len(rows) > len(shown) or (bool(shown) and not shown[-1]["is_seen"])
    return Patients(
        patients=[
            PatientSeen(
                patient_id=row["patient_id"],
                permissions=row["permissions"],
                until=ends_of(row["permissions"], row["ends"]),
            )
            for row in shown
            if row["is_seen"]
        ],
        next=shown[-1]["patient_id"] if more else None,
    )
