"""Tells of batches in the log: each in a line of its own while they are few, of many together.

To write a line and to wake whoever writes it out costs as much as half of a small batch's work.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Final

import structlog

MOST_IN_A_SECOND: Final = 20
"""Lines of one kind, before the second's other batches are told together."""
SECOND: Final = 1.0

log = structlog.get_logger()


class BatchLines:
    """The lines of one kind of batch."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._told = 0
        self._batches = 0
        self._partitions: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0

    def note(self, partitions: Iterable[int], seconds: float, **counts: int) -> None:
        """Note a batch; it is told now, or within a second together with others."""
        self._batches += 1
        self._partitions.update(partitions)
        for name, count in counts.items():
            self._counts[name] += count
        self._seconds += seconds
        if self._told < MOST_IN_A_SECOND:
            self._told += 1
            self._tell()

    def begin_second(self) -> None:
        """Tell what was not told yet, and begin to count lines anew."""
        if self._batches:
            self._tell()
        self._told = 0

    def _tell(self) -> None:
        log.info(
            self._event,
            batches=self._batches,
            partitions=sorted(self._partitions),
            **self._counts,
            milliseconds=round(self._seconds * 1000, 1),
        )
        self._batches, self._seconds = 0, 0.0
        self._partitions.clear()
        self._counts.clear()


async def keep_telling(*every: BatchLines) -> None:
    """Tell within a second what is noted, until cancelled, and then what is left."""
    try:
        while True:
            await asyncio.sleep(SECOND)
            for lines in every:
                lines.begin_second()
    finally:
        for lines in every:
            lines.begin_second()
