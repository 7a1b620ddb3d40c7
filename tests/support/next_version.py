"""Plays the next version of this software, which has a version 3 of an event.

As a program it runs a service so: `python -m tests.support.next_version command_service run`.
"""

import sys
from importlib import import_module
from typing import ClassVar

import pytest

from command_service.domain import patient
from shared.messages import events
from shared.messages.upcasting import UPCASTERS, Data


class ConsentGranted(events.ConsentGranted):
    """Version 3 also says what for."""

    newest_schema: ClassVar[int] = 3
    oldest_schema: ClassVar[int] = 3
    purpose: str = "care"

    @property
    def schema_version(self) -> int:
        """The version that is written."""
        return self.newest_schema


def as_it_is(data: Data) -> Data:
    """Bring version 1 to version 2, which may have an end besides."""
    return data


def with_purpose(data: Data) -> Data:
    """Bring version 2 to version 3."""
    return {**data, "purpose": "unstated"}


def upgrade(change: pytest.MonkeyPatch) -> None:
    """Make this process one of the next version."""
    change.setitem(events.EVENTS, "ConsentGranted", ConsentGranted)
    change.setitem(UPCASTERS, ("ConsentGranted", 1), as_it_is)
    change.setitem(UPCASTERS, ("ConsentGranted", 2), with_purpose)
    change.setattr(patient, "ConsentGranted", ConsentGranted)


if __name__ == "__main__":
    upgrade(pytest.MonkeyPatch())
    service = sys.argv.pop(1)
    import_module(f"{service}.cli").app()
