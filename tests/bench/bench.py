"""What every figure is given, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

from tests.bench.progress import Steps
from tests.sandbox import Sandbox

TIMES = "\N{MULTIPLICATION SIGN}"


class UnmetError(Exception):
    """Something was lost, refused or late: the figures would prove nothing."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    runs: int
    """Repetitions of everything."""
    patients: int
    grants_per_patient: int
    append_batches: int
    """Of 500 events each."""
    log_events: int
    """What is read from the log to catch up."""
    latency_s: float
    """How long commands are sent at each rate."""
    idle_s: float
    consents: int
    """In the read model that questions are asked of."""
    check_s: float
    """How long questions are asked of each kind."""
    log_sizes: tuple[int, ...]
    stream_lengths: tuple[int, ...]
    ends: int
    """Of consents, at one moment."""
    mirror_patients: int
    partitions: int = 8

    @property
    def grants(self) -> int:
        """Commands of one run."""
        return self.patients * self.grants_per_patient


FULL = Sizes(
    runs=5,
    patients=2_000,
    grants_per_patient=5,
    append_batches=20,
    log_events=30_000,
    latency_s=3,
    idle_s=3,
    consents=1_000_000,
    check_s=2,
    log_sizes=(0, 1_000_000, 5_000_000),
    stream_lengths=(10, 1_000, 50_000),
    ends=100_000,
    mirror_patients=1_000_000,
)
QUICK = Sizes(
    runs=1,
    patients=400,
    grants_per_patient=5,
    append_batches=5,
    log_events=5_000,
    latency_s=1,
    idle_s=1,
    consents=20_000,
    check_s=1,
    log_sizes=(0, 20_000, 100_000),
    stream_lengths=(10, 200, 2_000),
    ends=5_000,
    mirror_patients=50_000,
)


@dataclass(frozen=True)
class Bench:
    """The servers, how much to measure on them, and where to tell how far it is."""

    sandbox: Sandbox
    sizes: Sizes
    steps: Steps
    template: str
    """The migrated databases, one on each server, that others are copied from."""


@dataclass(frozen=True)
class Goal:
    """What a figure has to reach; whatever is None is not asked for."""

    at_least: float | None = None
    """The ratio to the limit, of what should be high."""
    at_most: float | None = None
    """The ratio to the limit, of what should be low."""
    no_less_than: float | None = None
    """In the figure's own unit."""
    no_more_than: float | None = None

    def __str__(self) -> str:
        ratios = ((">=", self.at_least), ("<=", self.at_most))
        values = ((">=", self.no_less_than), ("<=", self.no_more_than))
        words = [f"{sign} {ratio:g}{TIMES}" for sign, ratio in ratios if ratio is not None]
        words += [f"{sign} {value:,g}" for sign, value in values if value is not None]
        return " and ".join(words).replace(">=", "≥").replace("<=", "≤")

    def reached(self, ratio: float | None, value: float) -> bool | None:
        """Whether it is reached; None where that can't be said."""
        if ratio is None and (self.at_least is not None or self.at_most is not None):
            return None
        return not (
            (self.at_least is not None and (ratio or 0) < self.at_least)
            or (self.at_most is not None and (ratio or 0) > self.at_most)
            or (self.no_less_than is not None and value < self.no_less_than)
            or (self.no_more_than is not None and value > self.no_more_than)
        )


@dataclass(frozen=True)
class Figure:
    """A measured quantity, one value per run; none where it could not be measured."""

    name: str
    unit: str
    values: Sequence[float]
    limit: Sequence[float] = ()
    """What it is compared with, one value per run, each measured next to the figure's own."""
    goal: Goal | None = None

    def summary(self) -> tuple[float, float, float] | None:
        """Median, smallest and largest value."""
        if not self.values:
            return None
        return median(self.values), min(self.values), max(self.values)

    def limit_median(self) -> float | None:
        """The limit in this unit."""
        return median(self.limit) if self.limit else None

    def ratio(self) -> float | None:
        """Median of what each run came to in proportion to its own limit.

        The machine's speed drifts: only what was measured side by side can be compared.
        """
        pairs = list(zip(self.values, self.limit, strict=False))
        return median(value / limit for value, limit in pairs) if pairs else None

    def reached(self) -> bool | None:
        """Whether the goal is reached; None where there is none or nothing was measured."""
        if self.goal is None or not self.values:
            return None
        return self.goal.reached(self.ratio(), median(self.values))


@dataclass(frozen=True)
class Section:
    """Figures that were measured together, and how, in sentences."""

    title: str
    how: Sequence[str]
    figures: Sequence[Figure] = field(default_factory=list)


def expect(truth: object, otherwise: str) -> None:
    """Raise UnmetError with that line where something is not true."""
    if not truth:
        raise UnmetError(otherwise)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that occurred, never one between two."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]
