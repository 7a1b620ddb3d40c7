"""Reads SQL statements: one file each, named as the function that runs it."""

from importlib.resources import files


def statement(package: str, name: str) -> str:
    """Return the text of `<package>/sql/<name>.sql`."""
    return (files(package) / "sql" / f"{name}.sql").read_text(encoding="utf-8")
