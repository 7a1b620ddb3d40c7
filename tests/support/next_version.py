"""Plays the next version of this software, which has a version 2 of an event.

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
    """Version 2 also says what for."""

    schema_version: ClassVar[int] = 2
    purpose: str = "care"


def with_purpose(data: Data) -> Data:
    """Bring version 1 to version 2."""
    return {**data, "purpose": "unstated"}


def upgrade(change: pytest.MonkeyPatch) -> None:
    """Make this process one of the next version."""
    change.setitem(events.EVENTS, "ConsentGranted", ConsentGranted)
    change.setitem(UPCASTERS, ("ConsentGranted", 1), with_purpose)
    change.setattr(patient, "ConsentGranted", ConsentGranted)


if __name__ == "__main__":
    upgrade(pytest.MonkeyPatch())
    service = sys.argv.pop(1)
    import_module(f"{service}.cli").app()
