"""Finds out which command ends workers, when one does.

When a worker dies, all that it had in hand comes back: the command that killed it and the innocent
ones beside it. Once messages have come back often enough to be suspicious they are handled one at
a time, and each is written down before: the one that was begun again and again and never finished
is the culprit. Before any is blamed, a harmless command is rehearsed: what fails for that one too
would fail for all.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from typing import Final

import asyncpg

from command_service.path.rehearsal import Rehearsal
from shared.errors import Conflict
from shared.postgres.connection import Pool
from shared.postgres.statements import statement
from shared.rabbitmq.consumer import Delivery
from shared.worker.process import EXPECTED

MOST_ATTEMPTS: Final = 5
EXCUSED_WITHIN_S: Final = 2.0
AT_FAULT: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, Conflict)
"""What the database says of a message's content, not of itself; a conflict, if it does not end."""

_NOTE_ATTEMPT = statement("command_service", "note_attempt")
_CLEAR_ATTEMPTS = statement("command_service", "clear_attempts")


class PoisonMessages:
    """Keeps its notes in the event store, so that they survive the worker."""

    def __init__(self, pool: Pool, rehearsal: Rehearsal) -> None:
        self._pool = pool
        self._rehearsal = rehearsal

    async def is_poison(self, delivery: Delivery) -> bool:
        """Note that a suspicious message is about to be handled; whether that must not be.

        Raises SurroundingsWrong where another one could not be handled either.
        """
        attempts = await self._pool.fetchval(_NOTE_ATTEMPT, _digest(delivery))
        if int(attempts or 0) <= MOST_ATTEMPTS:
            return False
        async with self.not_blamed_for_outages(delivery):
            await self._rehearse(delivery)
        return True

    @asynccontextmanager
    async def not_blamed_for_outages(self, delivery: Delivery) -> AsyncIterator[None]:
        """Clear the message where a server, or another worker, kept it from being handled.

        Raises SurroundingsWrong in the place of an error that any other message would meet.
        """
        try:
            yield
        except BaseException as error:
            if not _blames_the_message(error):
                await self._excuse(delivery)
                raise
            try:
                await self._rehearse(delivery)
            except Exception:
                await self._excuse(delivery)
                raise
            raise

    async def _rehearse(self, delivery: Delivery) -> None:
        if delivery.source.lease is not None:  # what has none never reaches the database
            await self._rehearsal.hold(delivery.source.lease)

    async def _excuse(self, delivery: Delivery) -> None:
        with suppress(Exception):
            async with asyncio.timeout(EXCUSED_WITHIN_S):
                await self.clear(delivery)

    async def clear(self, delivery: Delivery) -> None:
        """Forget a message that was handled or set aside."""
        await self._pool.execute(_CLEAR_ATTEMPTS, _digest(delivery))


def _blames_the_message(error: BaseException) -> bool:
    if isinstance(error, AT_FAULT):
        return True
    return not isinstance(error, (asyncio.CancelledError, *EXPECTED))


def _digest(delivery: Delivery) -> bytes:
    message_id = (delivery.message.header.properties.message_id or "").encode()
    return blake2b(message_id + b"\0" + delivery.message.body, digest_size=16).digest()
