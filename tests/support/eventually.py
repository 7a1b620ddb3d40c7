"""Waits for a fact, never for a time: a deadline only bounds a hang, however slow the machine."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

Fact = TypeVar("Fact")


async def eventually(
    look: Callable[[], Awaitable[Fact]], *, within: float = 30.0, every: float = 0.02
) -> Fact:
    """Look again and again until what is found is true; return it.

    Raises AssertionError with what was seen last.
    """
    deadline = monotonic() + within
    while not (found := await look()):
        if monotonic() > deadline:
            raise AssertionError(f"not within {within} s; last seen: {found!r}")
        await asyncio.sleep(every)
    return found
