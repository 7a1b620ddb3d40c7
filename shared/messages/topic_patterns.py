"""Binding patterns of a topic exchange, matched here as the broker matches them there. Pure."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from shared.errors import SettingsError
from shared.messages import names
from shared.messages.cloud_event import CloudEvent
from shared.messages.events import UnknownEventError

EVERYTHING: Final = "#"
LONGEST: Final = 255
"""Bytes of a routing key in AMQP."""


def check(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns, each once; raises SettingsError where one can't be bound."""
    found = tuple(dict.fromkeys(patterns))
    if not found:
        raise SettingsError("no pattern is given: use `#` for every event")
    for pattern in found:
        if not 0 < len(pattern.encode()) <= LONGEST:
            raise SettingsError(f"a pattern is 1 to {LONGEST} bytes long, like granted.doctor.#")
    return found


def whole(patterns: Iterable[str]) -> tuple[str, ...]:
    """Widen patterns to all that happens in each partition which they touch."""
    last = {pattern.rsplit(".", 1)[-1] for pattern in patterns}
    if not all(map(str.isdecimal, last)):
        return (EVERYTHING,)
    return tuple(f"{EVERYTHING}.{number}" for number in sorted(last))


def matches(pattern: str, key: str) -> bool:
    """Whether a routing key fits: `*` stands for one word, `#` for any number of them."""
    return _fits(pattern.split("."), key.split("."))


def _fits(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == EVERYTHING:
        return any(_fits(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in {"*", words[0]} and _fits(rest, words[1:])


def chooses(patterns: Sequence[str]) -> Callable[[CloudEvent], bool]:
    """Make the test whether an event would be routed to a queue with these bindings.

    An event from a newer writer, whose routing key is not known here, is let through.
    """

    def chosen(event: CloudEvent) -> bool:
        try:
            key = names.event_key(event.event(), event.partition)
        except (UnknownEventError, ValueError):
            return True
        return any(matches(pattern, key) for pattern in patterns)

    return (lambda _: True) if EVERYTHING in patterns else chosen
