"""Tells how long ago something was, whatever happens to the clock on the wall meanwhile."""

import time
from pathlib import Path
from typing import Final, NamedTuple

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""It goes on while the machine sleeps, and is the same for all processes."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Moment(NamedTuple):
    """A moment, by both clocks of this host."""

    boot: str
    """Names the time since the host was started, where the system tells."""
    clock: float
    """Seconds since then."""
    wall: float
    """Seconds since 1970."""


def read_boot() -> str:
    """Name the time since this host was started."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


BOOT: Final = read_boot()


def clock() -> float:
    """Read the clock that nobody sets."""
    return time.clock_gettime(_CLOCK)


def now() -> Moment:
    """Read both clocks."""
    return Moment(BOOT, clock(), time.time())


def seconds_since(moment: Moment | None) -> float:
    """Say how long ago a moment was, by the clock that says longer; infinity where none is known.

    A clock that is set back makes nothing younger, nor does one that stood still with its machine.
    """
    if moment is None or moment.boot != BOOT:
        return float("inf")
    return max(0.0, clock() - moment.clock, time.time() - moment.wall)
