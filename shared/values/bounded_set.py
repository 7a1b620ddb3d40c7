"""A bounded memory: what was not used for longest is forgotten first. Pure."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class BoundedSet(Generic[Thing]):
    """Things that were noted, at most so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._things: dict[Thing, None] = {}

    def __len__(self) -> int:
        return len(self._things)

    def __contains__(self, thing: Thing) -> bool:
        """Whether it is remembered; to ask is to use it."""
        if thing not in self._things:
            return False
        self.note(thing)
        return True

    def note(self, thing: Thing) -> None:
        """Remember it, as what was used last."""
        self._things.pop(thing, None)
        self._things[thing] = None
        if len(self._things) > self._most:
            del self._things[next(iter(self._things))]

    def clear(self) -> None:
        """Forget everything."""
        self._things.clear()
