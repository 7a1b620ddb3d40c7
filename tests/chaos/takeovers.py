"""Measures how long the partitions of a worker wait whose database has fallen silent."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple

from tests.chaos.databases import cursors, owners
from tests.chaos.evidence import Takeover
from tests.chaos.plan import ANSWERED_WITHIN_S, MARGIN_S
from tests.sandbox.servers import NOT_YET
from tests.support.eventually import eventually

LOOKS_EVERY_S = 0.25
STEADY_S = 1.5
STEADY_WITHIN_S = 40.0
WAITS_S = ANSWERED_WITHIN_S + MARGIN_S
LATEST_WORK_S = 2.0
"""When there must be something to do, for it to be seen whether somebody does it."""


class Progress(NamedTuple):
    """The partitions with something to do since a moment, and those where some of it was done."""

    waiting: Collection[int]
    done: Collection[int]


Look = Callable[[datetime], Progress]


class Takeovers:
    """What was measured, and what is needed for it."""

    def __init__(self, event_store_url: str, read_model_url: str, look: Look) -> None:
        """`look` tells of the commands that were sent since a moment, and of their replies."""
        self._urls = {"command": event_store_url, "projection": read_model_url}
        self._look_at_commands = look
        self.found: list[Takeover] = []

    async def steady(self, kind: str, workers: Collection[str]) -> dict[str, set[int]]:
        """Return who owns what, when these workers have shared out all partitions for good.

        Raises AssertionError where they don't.
        """
        last: dict[str, set[int]] = {}

        async def same_twice() -> dict[str, set[int]]:
            nonlocal last
            before, last = last, await self._owned(kind)
            return last if last == before and last.keys() == set(workers) else {}

        return await eventually(same_twice, within=STEADY_WITHIN_S, every=STEADY_S)

    async def _owned(self, kind: str) -> dict[str, set[int]]:
        with suppress(*NOT_YET):
            return await owners(self._urls[kind])
        return {}

    async def measure(self, kind: str, worker: str, partitions: Collection[int]) -> None:
        """Return when all these partitions were served by another worker, or it took too long."""
        at, began = datetime.now(UTC), monotonic()
        look = await self._looking(kind, at)
        since: dict[int, float] = {}
        open_ones = set(partitions)
        while open_ones and monotonic() - began < WAITS_S + LATEST_WORK_S:
            progress, now = await look(), monotonic()
            for partition in open_ones & set(progress.waiting):
                since.setdefault(partition, now)
            for partition in open_ones & set(progress.done):
                seconds = now - since.get(partition, now)
                self.found.append(Takeover(at, worker, partition, seconds))
                open_ones.discard(partition)
            await asyncio.sleep(LOOKS_EVERY_S)
        # One that had nothing to do for long shows nothing.
        overdue = {one for one in open_ones if monotonic() - since.get(one, monotonic()) > WAITS_S}
        self.found += [Takeover(at, worker, partition, None) for partition in sorted(overdue)]

    async def _looking(self, kind: str, at: datetime) -> Callable[[], Awaitable[Progress]]:
        async def at_commands() -> Progress:
            return self._look_at_commands(at)

        async def at_projections() -> Progress:
            """Tell of what was sent to the partitions' queues since, and what came of it."""
            with suppress(*NOT_YET):
                now = await self._cursors()
                behind = {number for number, (_, sent, _) in now.items() if sent > reached[number]}
                moved = {number for number, (*_, to) in now.items() if to > reached[number]}
                return Progress(behind, moved)
            return Progress((), ())

        if kind == "command":
            return at_commands
        reached = {number: to for number, (*_, to) in (await self._cursors()).items()}
        return at_projections

    async def _cursors(self) -> dict[int, tuple[int, int, int]]:
        return await cursors(self._urls["command"], self._urls["projection"])
