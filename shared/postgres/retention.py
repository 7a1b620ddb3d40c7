"""What the verbs that purge have in common: how old is old enough, and why it may fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import asyncpg

from shared.errors import SettingsError
from shared.values.durations import parse_duration

SHORTEST_AGE: Final = timedelta(days=1)
"""What is younger may still be needed by everybody: a slip must not remove it."""


def read_age(text: str) -> timedelta:
    """Read the option --older-than; raises SettingsError."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"--older-than: {error}") from None


@contextmanager
def purging(what: str, older_than: timedelta) -> Iterator[None]:
    """Purge within; raises SettingsError for an age below a day, or a role that may not purge."""
    if older_than < SHORTEST_AGE:
        raise SettingsError(f"no {what} younger than a day can be purged: --older-than 1d or more")
    try:
        yield
    except asyncpg.DatetimeFieldOverflowError:
        raise SettingsError("nothing is that old: give a shorter --older-than") from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise SettingsError(f"{error}: purge as the owner of the schema") from None
