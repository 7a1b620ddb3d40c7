"""A connection that is kept for a statement that every batch needs."""

from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from shared.postgres.connection import Pool


class KeptConnection:
    """Borrows from a pool once, and not for each statement.

    A pool takes each connection back in a task of its own, which costs a small batch two more turns
    of the loop. One statement runs at a time; whoever comes meanwhile borrows.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: PoolConnectionProxy[Record] | None = None
        self._is_busy = False

    async def fetch(self, sql: str, *parameters: object) -> list[Record]:
        """Run one statement and return its rows."""
        if self._is_busy:
            return await self._pool.fetch(sql, *parameters)
        self._is_busy = True
        try:
            if self._kept is not None and self._kept.is_closed():
                # One that ends in the midst of a message is closed without a word to who listens,
                # and keeps its place in the pool until it is given back.
                await self._pool.release(self._kept)
                self._kept = None
            if self._kept is None:
                self._kept = await self._pool.acquire()
                self._kept.add_termination_listener(self._forget)
            return await self._kept.fetch(sql, *parameters)
        finally:
            self._is_busy = False

    def _forget(self, _: object) -> None:
        """Borrow another one the next time: this one has ended."""
        self._kept = None
