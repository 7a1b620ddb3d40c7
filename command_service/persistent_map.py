"""An immutable mapping that is cheap to change, however large it is. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final, Generic, TypeAlias, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

BITS: Final = 5
WAYS: Final = 1 << BITS
LEAF: Final = 64
"""How many entries a leaf holds at most; a mapping that is no larger is one dictionary."""
DEEPEST: Final = 60
"""Bits of the hash that tell keys apart; a leaf below holds any number, their hashes are alike."""


class Branch(Generic[Key, Value]):
    """Tells keys apart by five bits of their hash."""

    __slots__ = ("children",)

    def __init__(self, children: list["Node[Key, Value]"]) -> None:
        self.children = children


Node: TypeAlias = dict[Key, Value] | Branch[Key, Value]


class PersistentMap(Mapping[Key, Value]):
    """A mapping whose changes are new mappings, which share nearly everything with it.

    A trie over the hashes of the keys, after Bagwell: a change copies the leaf that it is in and
    the few branches above it, and nothing is ever changed in place.
    """

    __slots__ = ("_root", "_size")

    def __init__(self, root: Node[Key, Value] | None = None, size: int = 0) -> None:
        """Make an empty one; `of` makes others."""
        self._root: Node[Key, Value] = {} if root is None else root
        self._size = size

    @classmethod
    def of(cls, entries: Mapping[Key, Value]) -> "PersistentMap[Key, Value]":
        """Copy a mapping."""
        return cls(_spread(dict(entries), 0), len(entries))

    def with_entry(self, key: Key, value: Value) -> "PersistentMap[Key, Value]":
        """Return this mapping with one entry added or replaced."""
        return PersistentMap(_with(self._root, key, value, 0), self._size + (key not in self))

    def without(self, key: Key) -> "PersistentMap[Key, Value]":
        """Return this mapping without a key, whether it was there or not."""
        if key not in self:
            return self
        return PersistentMap(_without(self._root, key, 0), self._size - 1)

    def __getitem__(self, key: Key) -> Value:
        node, shift = self._root, 0
        while isinstance(node, Branch):
            node = node.children[_way(key, shift)]
            shift += BITS
        return node[key]

    def __iter__(self) -> Iterator[Key]:
        for leaf in self.leaves():
            yield from leaf

    def leaves(self) -> Iterator[Mapping[Key, Value]]:
        """Iterate over all entries, in dictionaries: far faster than one by one."""
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            if isinstance(node, Branch):
                nodes += node.children
            else:
                yield node

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"PersistentMap.of({dict(self)!r})"


def _way(key: object, shift: int) -> int:
    return (hash(key) >> shift) & (WAYS - 1)


def _with(node: Node[Key, Value], key: Key, value: Value, shift: int) -> Node[Key, Value]:
    if isinstance(node, Branch):
        way, children = _way(key, shift), node.children.copy()
        children[way] = _with(children[way], key, value, shift + BITS)
        return Branch(children)
    leaf = node.copy()
    leaf[key] = value
    return _spread(leaf, shift)


def _without(node: Node[Key, Value], key: Key, shift: int) -> Node[Key, Value]:
    if isinstance(node, Branch):
        way, children = _way(key, shift), node.children.copy()
        children[way] = _without(children[way], key, shift + BITS)
        return Branch(children)
    leaf = node.copy()
    del leaf[key]
    return leaf


def _spread(entries: dict[Key, Value], shift: int) -> Node[Key, Value]:
    """Make a leaf of these entries, or a branch where they are too many for one."""
    if len(entries) <= LEAF or shift >= DEEPEST:
        return entries
    leaves: list[dict[Key, Value]] = [{} for _ in range(WAYS)]
    for key, value in entries.items():
        leaves[_way(key, shift)][key] = value
    return Branch([_spread(leaf, shift + BITS) for leaf in leaves])
