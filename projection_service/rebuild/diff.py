"""Compares the read model with its shadow, table by table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

from projection_service.read_model import TABLES
from shared.postgres.connection import Session
from shared.postgres.statements import statement

MOST_SHOWN: Final = 100
"""Differences of one table that are given whole; the others are counted."""
MAY_DIFFER: Final[Mapping[str, Sequence[str]]] = {"parked_events": ("reason", "parked_at")}
"""Columns that tell when and by whom a row was written, not what follows from the log."""
COMPARED: Final = tuple(name for name in TABLES if name != "checkpoints")
"""The checkpoints are held equal while the others are compared."""
COMPARE_WITHIN_S: Final = 3600.0

_WRITE_COMPARISON = statement("projection_service", "write_comparison")
_ANY_PLAN: Final = """
    SET LOCAL enable_seqscan = on;
    SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_mergejoin = on
"""
"""Whole tables are read here, unlike anywhere else."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that is not as the log says; `live` or `rebuilt` is None where there is no row."""

    key: dict[str, Any]
    live: dict[str, Any] | None
    rebuilt: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found in one table."""

    table: str
    different: int
    examples: list[Difference]


async def compare(connection: Session) -> list[Compared]:
    """Compare every table, within a transaction whose snapshot shows both at equal positions."""
    await connection.execute(_ANY_PLAN)
    return [await _compare(connection, table) for table in COMPARED]


async def _compare(connection: Session, table: str) -> Compared:
    ignored = list(MAY_DIFFER.get(table, ()))
    comparison = await connection.fetchval(_WRITE_COMPARISON, table, ignored)
    rows = await connection.fetch(comparison, MOST_SHOWN, timeout=COMPARE_WITHIN_S)
    examples = [
        Difference(from_json(row["key"]), _row(row["live"]), _row(row["shadow"])) for row in rows
    ]
    return Compared(table, rows[0]["total"] if rows else 0, examples)


def _row(text: str | None) -> dict[str, Any] | None:
    return None if text is None else from_json(text)
