"""Fills the shadow from the log, several partitions at once."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from projection_service.consent_cache import ConsentCache
from projection_service.projections.changes import Move
from projection_service.projections.fold import fold, read
from projection_service.rebuild.shadow import Shadow
from shared.errors import NotNow, first_cause
from shared.event_log.log_client import LogClient
from shared.event_log.set_back import FIRST_GENERATION
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import MOST_EVENTS

LANES: Final = 4
"""Partitions filled at once: while one waits for the log or the database, another one goes on."""
BATCH: Final = 4 * MOST_EVENTS
"""Events of one partition that are asked for at once, and projected by one statement."""


@dataclass(frozen=True)
class Filling:
    """Takes events out of the log and projects them into the shadow."""

    log: LogClient
    shadow: Shadow
    done: Callable[[int], None]
    """Told how many events more are projected."""

    async def reach(self, targets: Mapping[int, int]) -> None:
        """Project every partition exactly up to its target, where it is not there yet.

        Raises NotNow where the log has less, NoAnswer while nobody reads it for us.
        """
        positions = await self.shadow.positions()
        todo = (number for number, target in targets.items() if target > positions[number])
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(LANES):
                    group.create_task(self._lane(todo, targets))
        except BaseExceptionGroup as several:
            raise first_cause(several) from None

    async def _lane(self, todo: Iterator[int], targets: Mapping[int, int]) -> None:
        """Fill one partition after the other, of those that no other lane has taken."""
        for partition in todo:
            await self._fill(partition, targets[partition])

    async def _fill(self, partition: int, target: int) -> None:
        position = (await self.shadow.model.open_checkpoint(partition)).position
        known = ConsentCache(self.shadow.model)
        while position < target:
            events = await self._read(partition, position, min(position + BATCH, target))
            await self._project(known, position, events)
            position = events[-1].position
            self.done(len(events))

    async def _read(self, partition: int, after: int, until: int) -> list[CloudEvent]:
        """Read what follows `after`, up to `until`; all pages are asked for at once."""
        pages = (
            self._read_page(partition, start, min(start + MOST_EVENTS, until))
            for start in range(after, until, MOST_EVENTS)
        )
        return list(chain.from_iterable(await asyncio.gather(*pages)))

    async def _read_page(self, partition: int, after: int, until: int) -> list[CloudEvent]:
        """Read on until the page is whole: an answer may end sooner, being large."""
        events: list[CloudEvent] = []
        while after < until:
            page = await self.log.read(partition, after, until - after)
            _check_whole(partition, after, page.events, page.head)
            events += page.events
            after = events[-1].position
        return events

    async def _project(
        self, known: ConsentCache, position: int, events: Sequence[CloudEvent]
    ) -> None:
        facts = [(event, read(event)) for event in events]
        changes = fold(facts, *await known.load(facts))
        last = events[-1]
        generation = last.generation or FIRST_GENERATION
        changes.moves = {
            last.partition: Move(self.shadow.epoch, position, last.position, last.id, generation)
        }
        await self.shadow.model.project(changes)
        known.note(changes)


def _check_whole(partition: int, after: int, events: Sequence[CloudEvent], head: int) -> None:
    """Refuse a log that does not have every position."""
    for position, event in enumerate(events, start=after + 1):
        if event.position != position:
            raise NotNow(f"the log of partition {partition} has no position {position}")
    if not events:
        raise NotNow(
            f"the log of partition {partition} ends at {head} now, but was longer before: it was "
            "set back meanwhile, so begin again"
        )
