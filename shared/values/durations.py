"""Reads how long something lasts: 90d, 12h."""

import re
from datetime import timedelta
from typing import Final

_UNITS: Final = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}
_DURATION: Final = re.compile(r"(\d{1,9})([smhdwy])", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """Read a whole number and its unit: s, m, h, d, w or y (365 days).

    Raises ValueError, saying what is understood.
    """
    found = _DURATION.fullmatch(text.strip())
    try:
        if found:
            return int(found[1]) * _UNITS[found[2]]
    except OverflowError:
        pass
    raise ValueError(f"{text!r} is no duration: write a number and one of s m h d w y, as 90d")
