"""How large batches become: what came while one was under way is given time to become more."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from shared.rabbitmq import consumer
from shared.rabbitmq.consumer import Consumer, Delivery, QueueConsumer

PREFETCH = 40
FILLED = PREFETCH // 4
TURNS = 5
"""Of the loop; no timer of milliseconds ends within so few."""


class Queue:
    """What a broker does to a consumer: deliveries, numbered from 1."""

    def __init__(self) -> None:
        nothing: Any = None  # no server: only what has arrived is looked at
        self.consumer = Consumer(nothing, prefetch=PREFETCH)
        self._source = QueueConsumer("queue", nothing, None)
        self._count = 0

    def deliver(self, count: int = 1) -> None:
        for _ in range(count):
            self._count += 1
            message: Any = SimpleNamespace(delivery_tag=self._count, redelivered=False)
            self.consumer._arrive(Delivery(self._source, message))  # noqa: SLF001 - as the channel would

    async def handle_one_for(self, seconds: float) -> None:
        self.deliver()
        await self.take()
        time.sleep(seconds)  # noqa: ASYNC251 - it is work

    async def take(self) -> list[int]:
        return [delivery.tag for delivery in await self.consumer.take(PREFETCH, paced=True)]


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_what_came_while_a_batch_was_under_way_is_joined_by_what_comes_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "LONGEST_PAUSE_S", 10.0)
    queue = Queue()
    await queue.handle_one_for(0.5)  # as long as a busy machine may stand still in between
    queue.deliver()
    taking = asyncio.create_task(queue.take())
    await turns()
    queue.deliver()
    assert await taking == [2, 3]


async def test_what_comes_while_nothing_is_under_way_is_taken_at_once() -> None:
    queue = Queue()
    await queue.handle_one_for(0.005)
    taking = asyncio.create_task(queue.take())
    await turns()
    queue.deliver()
    await turns()
    assert taking.done()
    assert await taking == [2]


async def test_what_would_fill_a_batch_is_taken_at_once() -> None:
    queue = Queue()
    await queue.handle_one_for(0.005)
    queue.deliver(FILLED)
    taking = asyncio.create_task(queue.take())
    await turns()
    assert taking.done()
    assert len(await taking) == FILLED
