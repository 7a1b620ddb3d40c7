"""One process of a host writes a mirror's file; the others wait until it is gone."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

LOOK_AGAIN_S: Final = 0.2
OWN: Final = 0o600
_held: Final[set[int]] = set()


@asynccontextmanager
async def writing(path: Path) -> AsyncIterator[None]:
    """Wait until nobody else holds the lock; the system lets go of it when a process dies.

    It keeps two from doing the same work. That they don't do it twice, the file sees to.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWN)
    _held.add(descriptor)
    try:
        while not _locked(descriptor):  # noqa: ASYNC110 - the system tells nobody
            await asyncio.sleep(LOOK_AGAIN_S)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_go_after_fork() -> None:
    """Keep a child from holding the lock when its parent is gone."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_after_fork)
