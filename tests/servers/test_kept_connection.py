"""A connection that is kept: used again and again, never by two at once, replaced once it ends."""

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg

from shared.postgres.database import open_pool
from shared.postgres.kept_connection import KeptConnection
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

ENDED = asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError
"""Raised on a connection that the server ends just now, in the midst of a message or not."""
WHO = "SELECT pg_backend_pid() AS pid, pg_sleep($1)"


async def test_a_statement_keeps_its_connection_others_borrow_and_one_that_ended_is_replaced(
    deployment: Deployment,
) -> None:
    pool = await open_pool(deployment.read_model_url, name="test", size=2)
    kept = KeptConnection(pool)

    async def session(seconds: float = 0.0) -> int:
        return int((await kept.fetch(WHO, seconds))[0]["pid"])

    async def is_another() -> bool:
        with suppress(*ENDED):
            return await session() != first
        return False

    try:
        first = await session()
        assert await session() == first
        slow, beside = await asyncio.gather(session(0.1), session())
        assert (slow, beside == first) == (first, False)
        await pool.execute("SELECT pg_terminate_backend($1)", first)
        await eventually(is_another)
    finally:
        pool.terminate()


async def test_one_that_was_closed_without_a_word_gives_its_place_in_the_pool_back(
    deployment: Deployment,
) -> None:
    size = 2
    pool = await open_pool(deployment.read_model_url, name="test", size=size)
    kept = KeptConnection(pool)
    try:
        async with asyncio.timeout(60):
            for _ in range(size + 1):
                await kept.fetch(WHO, 0.0)
                held: Any = kept._kept  # noqa: SLF001 - nobody else has it
                held._protocol.abort()  # noqa: SLF001 - as the driver does when it stumbles
                assert held.is_closed()
            await kept.fetch(WHO, 0.0)
            await pool.fetch(WHO, 0.0)
    finally:
        pool.terminate()
