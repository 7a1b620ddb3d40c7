"""Compares two JSON Schemas: is every value that the one allows also allowed by the other?

No library that is kept up says this of the keywords that pydantic writes. What is not understood
and differs counts as a difference: better one question too many than a break unnoticed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from shared.contract.catalogue import Json

ANNOTATIONS: Final = {"title", "description", "examples", "default", "deprecated", "$schema", "$id"}
LEAST: Final = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
MOST: Final = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
COMPARED: Final = {
    *("properties", "required", "additionalProperties", "items", "$defs"),
    *("type", "enum", "const", "anyOf", "oneOf", "$ref"),
}
"""Keywords that have a comparison of their own."""
ANYTHING: Final = "anything"


class Kind(Enum):
    """In which way a schema allows more than another."""

    MAY_LACK = auto()
    """It does not demand a field that the other demands."""
    NOT_KNOWN = auto()
    """It says nothing of a field that the other describes."""
    ONE_MORE = auto()
    """It has a field where the other takes no further ones."""
    VALUES = auto()
    LIMIT = auto()


@dataclass(frozen=True, slots=True)
class Excess:
    """One thing that the narrow schema should not allow."""

    path: str
    kind: Kind
    what: str = ""


@dataclass(frozen=True)
class Comparison:
    """The documents within which the references of either schema lead."""

    narrow: Json
    wide: Json

    def excess(self, narrow: Json, wide: Json, path: str) -> Iterator[Excess]:
        """Tell what `narrow` allows and `wide` does not."""
        narrow, wide = _resolved(narrow, self.narrow), _resolved(wide, self.wide)
        if choices := _choices(narrow):
            for choice in choices:
                yield from self.excess(choice, wide, path)
        elif choices := _choices(wide):
            found = [list(self.excess(narrow, choice, path)) for choice in choices]
            if all(found):
                yield from min(found, key=len)
        elif more := list(_values(narrow, wide, path)):
            yield from more  # of another kind altogether, its parts are not worth comparing
        else:
            yield from _limits(narrow, wide, path)
            yield from self._fields(narrow, wide, path)
            yield from self._items(narrow, wide, path)

    def _fields(self, narrow: Json, wide: Json, path: str) -> Iterator[Excess]:
        mine, theirs = narrow.get("properties", {}), wide.get("properties", {})
        lacking = set(wide.get("required", ())) - set(narrow.get("required", ()))
        for name in sorted(lacking & mine.keys()):
            yield Excess(f"{path}.{name}", Kind.MAY_LACK)
        for name in theirs:
            if name in mine:
                yield from self.excess(mine[name], theirs[name], f"{path}.{name}")
            elif name in lacking or not _takes_no_more(narrow):
                kind = Kind.MAY_LACK if _takes_no_more(narrow) else Kind.NOT_KNOWN
                yield Excess(f"{path}.{name}", kind)
        if _takes_no_more(wide):
            for name in sorted(mine.keys() - theirs.keys()):
                yield Excess(f"{path}.{name}", Kind.ONE_MORE)
            if not _takes_no_more(narrow):
                yield Excess(path, Kind.ONE_MORE, "any")

    def _items(self, narrow: Json, wide: Json, path: str) -> Iterator[Excess]:
        for keyword, part in (("items", "[]"), ("additionalProperties", ".*")):
            if isinstance(wide.get(keyword), dict):
                inner = narrow.get(keyword, {})
                inner = inner if isinstance(inner, dict) else {}
                yield from self.excess(inner, wide[keyword], path + part)


def _resolved(schema: Json, document: Json) -> Json:
    """Follow references within the document."""
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def _choices(schema: Json) -> list[Json]:
    return next((schema[keyword] for keyword in ("anyOf", "oneOf") if keyword in schema), [])


def _takes_no_more(schema: Json) -> bool:
    return schema.get("additionalProperties") is False


def _values(narrow: Json, wide: Json, path: str) -> Iterator[Excess]:
    """Compare types and listed values."""
    allowed, others = _listed(wide), _listed(narrow)
    if allowed is not None:
        more = {ANYTHING} if others is None else others - allowed
    else:
        types = _types(wide)
        more = set() if ANYTHING in types else _types(narrow) - types
    if more:
        yield Excess(path, Kind.VALUES, ", ".join(sorted(more)))


def _listed(schema: Json) -> set[str] | None:
    if "const" in schema:
        return {repr(schema["const"])}
    return {repr(value) for value in schema["enum"]} if "enum" in schema else None


def _types(schema: Json) -> set[str]:
    declared = schema.get("type", ANYTHING)
    types = {declared} if isinstance(declared, str) else set(declared)
    return types | {"integer"} if "number" in types else types


def _limits(narrow: Json, wide: Json, path: str) -> Iterator[Excess]:
    for keyword in sorted(wide.keys() - ANNOTATIONS - COMPARED):
        if not _keeps(keyword, narrow.get(keyword), wide[keyword]):
            yield Excess(path, Kind.LIMIT, f"{keyword} {wide[keyword]}")


def _keeps(keyword: str, mine: Any, theirs: Any) -> bool:  # noqa: ANN401 - any JSON
    if mine is not None and keyword in LEAST:
        return bool(mine >= theirs)
    if mine is not None and keyword in MOST:
        return bool(mine <= theirs)
    return bool(mine == theirs)
