"""Counts what was answered, and logs it once a second at most: a line for each would cost more."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from time import monotonic
from typing import Final

import structlog

from projection_service import metrics
from shared.telemetry.metrics import QUERIES

TOLD_AT_MOST_EVERY_S: Final = 1.0
_queries: Final = cache(QUERIES.labels)
_questions: Final = cache(metrics.QUESTIONS.labels)

log = structlog.get_logger()


class Tally:
    """What one responder has answered."""

    def __init__(self) -> None:
        self._told = 0.0
        self._queries = 0
        self._batches = 0
        self._seconds = 0.0

    def count(self, statuses: Iterable[tuple[str, str]], questions: Iterable[str]) -> None:
        """Count queries by type and status, and the questions in them by their answers."""
        for labels, times in Counter(statuses).items():
            _queries(*labels).inc(times)
        for word, times in Counter(questions).items():
            _questions(word).inc(times)

    def tell(self, queries: int, seconds: float, *, waiting: int, in_line: int) -> None:
        """Log a batch, with those of which nothing was told yet."""
        self._queries += queries
        self._batches += 1
        self._seconds += seconds
        now = monotonic()
        if now < self._told + TOLD_AT_MOST_EVERY_S:
            return
        log.info(
            "batch.answered",
            batches=self._batches,
            queries=self._queries,
            waiting=waiting,
            in_line=in_line,
            milliseconds=round(self._seconds * 1000, 1),
        )
        self._told, self._queries, self._batches, self._seconds = now, 0, 0, 0.0
