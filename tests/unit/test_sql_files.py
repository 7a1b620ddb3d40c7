"""What the SQL files may hold, so that any database can be sent them."""

from importlib.resources import files
from pathlib import Path

SQL = [
    Path(str(one))
    for package in ("shared.postgres", "command_service", "projection_service")
    for folder in ("sql", "migrations")
    for one in (files(package) / folder).iterdir()
    if one.name.endswith(".sql")
]


def test_sql_files_are_ascii_so_that_a_database_in_any_encoding_takes_them() -> None:
    assert SQL
    assert [one.name for one in SQL if not one.read_bytes().isascii()] == []
