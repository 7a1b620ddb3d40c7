"""Waits for a fact, never for a time: a deadline only bounds a hang, however slow the machine."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final, TypeVar

Fact = TypeVar("Fact")

SOONEST_S: Final = 0.02
LATEST_S: Final = 0.1
"""Often enough to see what does not last."""


async def eventually(
    look: Callable[[], Awaitable[Fact]], *, within: float = 30.0, every: float | None = None
) -> Fact:
    """Look again and again until what is found is true; return it.

    Looks follow more slowly the longer it takes, unless `every` says how often: each costs the
    others on the machine something. Raises AssertionError with what was seen last.
    """
    began = monotonic()
    while not (found := await look()):
        waited = monotonic() - began
        if waited > within:
            raise AssertionError(f"not within {within} s; last seen: {found!r}")
        await asyncio.sleep(every or min(max(waited / 10, SOONEST_S), LATEST_S))
    return found
