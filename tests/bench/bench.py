"""What every figure is given, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

from tests.bench.progress import Steps
from tests.sandbox import Sandbox


class UnmetError(Exception):
    """Something was lost, refused or late: the figures would prove nothing."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    throughput_runs: int
    patients: int
    grants_per_patient: int
    rate_per_s: int
    latency_s: int
    partitions: int = 8

    @property
    def grants(self) -> int:
        """Commands of one throughput run."""
        return self.patients * self.grants_per_patient


FULL = Sizes(throughput_runs=3, patients=2_000, grants_per_patient=5, rate_per_s=100, latency_s=20)
QUICK = Sizes(throughput_runs=1, patients=400, grants_per_patient=5, rate_per_s=100, latency_s=5)


@dataclass(frozen=True)
class Bench:
    """The servers, how much to measure on them, and where to tell how far it is."""

    sandbox: Sandbox
    sizes: Sizes
    steps: Steps


@dataclass(frozen=True)
class Figure:
    """A measured quantity, one value per run; none where it could not be measured."""

    name: str
    unit: str
    values: Sequence[float]

    def summary(self) -> tuple[float, float, float] | None:
        """Median, smallest and largest value."""
        if not self.values:
            return None
        return median(self.values), min(self.values), max(self.values)


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
