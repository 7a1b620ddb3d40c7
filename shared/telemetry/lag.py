"""How far something is behind a log, told from looks at both and never by the work itself."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import time
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

FRESH_S: Final = 10.0
"""How long a look that found nothing waiting is believed."""


@dataclass(frozen=True, slots=True)
class _Look:
    waiting: int
    done_until: float
    """All that was recorded before this moment is done with."""
    at: float


class Lag(Collector):
    """The gauges `<name>_events` and `<name>_seconds` of each partition, computed when asked for.

    The seconds are the age of the oldest event that waits. They are 0 only where a look of the
    last FRESH_S seconds found nothing waiting. While nobody can look they grow from the moment up
    to which all was known to be done: a lag is never 0 because something is stuck.
    """

    def __init__(self, name: str, what: str, clock: Callable[[], float] = time) -> None:
        """`what` says in the gauges' help which events wait."""
        self._name = name
        self._what = what
        self._clock = clock
        self._looks: dict[int, _Look] = {}

    def expect(self, partitions: Iterable[int]) -> None:
        """Let the lag of these partitions grow from now, until somebody has looked at them."""
        now = self._clock()
        for partition in partitions:
            self._looks.setdefault(partition, _Look(0, now, at=float("-inf")))

    def see(self, partition: int, waiting: int, age_s: float | None, looked_at: float) -> None:
        """Note how many events wait and how old the oldest is; `looked_at` is before the look."""
        before = self._looks.get(partition)
        if waiting <= 0:
            done_until = looked_at
        elif age_s is not None:
            done_until = looked_at - age_s
        else:
            done_until = before.done_until if before else looked_at
        self._looks[partition] = _Look(max(0, waiting), done_until, looked_at)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Compute the gauges as of now."""
        now = self._clock()
        events = GaugeMetricFamily(f"{self._name}_events", self._what, labels=["partition"])
        text = f"Age of the oldest: {self._what[0].lower()}{self._what[1:]}"
        seconds = GaugeMetricFamily(f"{self._name}_seconds", text, labels=["partition"])
        for partition, look in sorted(self._looks.items()):
            events.add_metric([str(partition)], look.waiting)
            seconds.add_metric([str(partition)], _seconds(look, now))
        yield events
        yield seconds


def _seconds(look: _Look, now: float) -> float:
    if look.waiting == 0 and now - look.at <= FRESH_S:
        return 0.0
    return max(0.0, now - look.done_until)
