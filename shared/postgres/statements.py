"""Reads SQL statements, one file each, named as the function that runs it; writes their rows."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from pydantic_core import to_json

Row = dict[str, Any]
"""By the names of columns; one that is left out is null."""


def statement(package: str, name: str) -> str:
    """Return the text of `<package>/sql/<name>.sql`."""
    return (files(package) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def as_json(rows: Sequence[Row]) -> str:
    """Write rows as the JSON that a statement takes them from by `json_to_recordset`."""
    return to_json(rows).decode()
