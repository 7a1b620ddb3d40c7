"""Looks, every 20 ms, how far something is, and remembers when it was first and last seen."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic

import asyncpg

from shared.rabbitmq.connection import Channel
from tests.bench.bench import expect
from tests.bench.progress import Tell

LOOK_EVERY_S = 0.02
STALLED_S = 15.0
"""A run in which nothing happens for so long has lost something."""
MARK = "/* the benchmark looks */"
"""In every statement of ours, so that those of the workers can be counted."""

PUBLISHED = "SELECT sum(published_position) FROM partitions"
VISIBLE = "SELECT sum(position) FROM checkpoints"

Count = Callable[[], Awaitable[int]]


@asynccontextmanager
async def counting(url: str, sql: str) -> AsyncIterator[Count]:
    """Connect, and yield what asks that one number."""
    connection = await asyncpg.connect(url, ssl=False)
    try:
        statement = await connection.prepare(f"{MARK} {sql}")

        async def count() -> int:
            return int(await statement.fetchval() or 0)

        yield count
    finally:
        await connection.close()


async def value(url: str, sql: str) -> int:
    """Ask one number."""
    async with counting(url, sql) as count:
        return await count()


async def watch(
    what: str, count: Count, wanted: int, tell: Tell = lambda _: None
) -> tuple[float, float]:
    """Look until there are as many as wanted; return when the first and the last were seen."""
    first, found, moved = 0.0, 0, monotonic()
    while found < wanted:
        before, found = found, await count()
        now = monotonic()
        if found > before:
            first, moved = first or now, now
            tell(found)
        expect(
            now < moved + STALLED_S,
            f"only {found:,} of {wanted:,} {what}, and nothing more for {STALLED_S:g} s",
        )
        await asyncio.sleep(LOOK_EVERY_S if found < wanted else 0)
    return first, moved


async def length(channel: Channel, queue: str) -> int:
    """Count the messages that wait in a queue, by declaring it passively."""
    found = await channel.queue_declare(queue, passive=True)
    return found.message_count or 0


async def watch_queues(channel: Channel, queues: Sequence[str], wanted: Sequence[int]) -> float:
    """Look until every queue has what is wanted of it; return when that was seen.

    Only one is looked at: each queue's length costs the broker a call to its leader.
    """
    seen = monotonic()
    for queue, most in zip(queues, wanted, strict=True):
        _, last = await watch(f"messages in {queue}", lambda q=queue: length(channel, q), most)  # type: ignore[misc]
        seen = max(seen, last)
    return seen
