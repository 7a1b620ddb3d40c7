"""The order of one partition's log as it arrives: seen, next, or behind a gap. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Place(Enum):
    """An event against what came before it."""

    SEEN = auto()
    NEXT = auto()
    GAP = auto()


@dataclass(eq=False, slots=True)
class Track(Generic[Thing]):
    """How far one partition is applied, and what had to be held because of a gap before it."""

    position: int
    """Up to here everything is applied."""
    anywhere: bool = False
    """Whether the first event that arrives says where the partition begins."""
    at_latest: bool = False
    """Whether the first event that arrives may say that it begins before the position."""
    placed: int = field(init=False)
    """The newest position found to be next; up to here everything is applied, or about to be."""
    held: dict[int, Thing] = field(default_factory=dict)
    """By position; held until the gap before it is filled."""

    def __post_init__(self) -> None:
        self.placed = self.position

    def place(self, position: int) -> Place:
        """Tell where an event belongs; one that is next must be applied, or the track given up."""
        if self.anywhere or (self.at_latest and position <= self.position):
            self.position = self.placed = position - 1
        self.anywhere = self.at_latest = False
        if position == self.placed + 1:
            self.placed = position
            return Place.NEXT
        return Place.SEEN if position <= self.placed or position in self.held else Place.GAP

    def applied(self) -> None:
        """Note that all that was next has been applied."""
        self.position = self.placed

    def release(self) -> list[Thing]:
        """Take out what was held, in order, once the first of it is not behind a gap any more."""
        if not self.held or min(self.held) > self.position + 1:
            return []
        released = [self.held[position] for position in sorted(self.held)]
        self.held.clear()
        return released

    def take_beyond(self, head: int, positions: Collection[int]) -> list[Thing]:
        """Take out which of these positions the log had not reached when it was asked later."""
        return [self.held.pop(one) for one in positions if one > head and one in self.held]
