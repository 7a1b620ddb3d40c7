"""Sets the clock of one database, as if its server's had been set."""

from datetime import timedelta
from typing import Final

import asyncpg

NOW: Final = timedelta(0)
FUNCTIONS: Final = ("clock_timestamp", "statement_timestamp", "now")


class DatabaseClock:
    """What PostgreSQL's functions tell in a database; to be made before anybody works there.

    They give their names to others, which add what a table holds.
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, url: str) -> "DatabaseClock":
        """Replace the functions of a database."""
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE clock (name text PRIMARY KEY, ahead interval)")
        for name in FUNCTIONS:
            await connection.execute(f"INSERT INTO clock VALUES ('{name}', '0')")  # noqa: S608
            await connection.execute(f"ALTER FUNCTION pg_catalog.{name}() RENAME TO true_{name}")
            await connection.execute(
                f"CREATE FUNCTION pg_catalog.{name}() RETURNS timestamptz LANGUAGE sql "  # noqa: S608
                f"AS $$ SELECT true_{name}() + ahead FROM public.clock WHERE name = '{name}' $$"
            )
        return cls(connection)

    async def set_ahead(self, ahead: timedelta, *functions: str) -> None:
        """Set the clock by so much ahead of the machine's, or as these functions tell it."""
        await self._connection.execute(
            "UPDATE clock SET ahead = $1 WHERE name = ANY ($2::text[])",
            ahead,
            list(functions or FUNCTIONS),
        )

    async def close(self) -> None:
        """Leave the clock as it is."""
        await self._connection.close()
