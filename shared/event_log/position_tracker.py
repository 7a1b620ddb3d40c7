"""The order of one partition's log as it arrives: seen, next, or behind a gap. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar

from shared.event_log.set_back import LogPlace

Thing = TypeVar("Thing")


class Arrival(Enum):
    """An event against what came before it."""

    SEEN = auto()
    NEXT = auto()
    GAP = auto()


@dataclass(eq=False, slots=True)
class PositionTracker(Generic[Thing]):
    """How far one partition is applied, and what had to be held because of a gap before it."""

    position: int
    """Up to here everything is applied."""
    starts_at_first: bool = False
    """Whether the first event that arrives says where the partition begins."""
    at_latest: bool = False
    """Whether the first event that arrives may say that it begins before the position."""
    event_id: str | None = None
    """Of the event at the position, where it is known."""
    generation: int | None = None
    """Of the log, of the event at the position; None where it is not known."""
    placed: int = field(init=False)
    """The newest position found to be next; up to here everything is applied, or about to be."""
    held: dict[int, Thing] = field(default_factory=dict)
    """By position; held until the gap before it is filled."""

    def __post_init__(self) -> None:
        self.placed = self.position

    @property
    def taken(self) -> LogPlace:
        """The last event that was applied."""
        return LogPlace(self.position, self.event_id, self.generation)

    def place(self, position: int) -> Arrival:
        """Tell where an event belongs; one that is next must be applied, or the track given up."""
        if self.starts_at_first or (self.at_latest and position <= self.position):
            self.position = self.placed = position - 1
            self.event_id = self.generation = None
        self.starts_at_first = self.at_latest = False
        if position == self.placed + 1:
            self.placed = position
            return Arrival.NEXT
        return Arrival.SEEN if position <= self.placed or position in self.held else Arrival.GAP

    def applied(self, event_id: str | None = None, generation: int | None = None) -> None:
        """Note that all that was next has been applied; the last of it was this event."""
        if self.placed > self.position:
            self.event_id, self.generation = event_id, generation
        self.position = self.placed

    def take_back(self) -> None:
        """Note that what was next could not be applied: it is next again."""
        self.placed = self.position

    def release(self) -> list[Thing]:
        """Take out what was held, in order, once the first of it is not behind a gap any more."""
        if not self.held or min(self.held) > self.position + 1:
            return []
        released = [self.held[position] for position in sorted(self.held)]
        self.held.clear()
        return released

    def take_beyond(self, head: int, positions: Collection[int]) -> list[Thing]:
        """Take out which of these positions the log had not reached when it was asked later."""
        return [
            self.held.pop(position)
            for position in positions
            if position > head and position in self.held
        ]
