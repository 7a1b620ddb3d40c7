"""A program's first moment: what must be done before the rest of it is imported.

SIGTERM is honoured from the first lines on.

The kernel ignores a signal that the first process of a container has no handler for, and imports
take most of a second; without this, whoever stops it then waits, and kills it in the end.
"""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BY_SIGNAL = 128
"""Is added to a signal's number where a process tells by its exit code that it ended by that."""


def honour_sigterm() -> None:
    """Have SIGTERM end this process, until a worker has a handler that drains.

    Call it before anything large is imported.
    """
    signal.signal(signal.SIGTERM, _end)


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage within, and among what is there in the end never again.

    Imports make much and drop little. To look through all of it, again and again and once more
    when the program ends, takes longer than half of them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end(number: int, _frame: object) -> None:
    """End as by the signal itself; a worker that has nothing in hand yet is drained."""
    if sys.argv[1:2] == ["run"]:
        os._exit(0)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(BY_SIGNAL + number)  # the first process of a container is spared its default
