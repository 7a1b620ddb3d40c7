"""Brings the data of an older event up to date, one schema version at a time. Pure."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

Data: TypeAlias = dict[str, Any]
Upcaster: TypeAlias = Callable[[Data], Data]

UPCASTERS: Final[dict[tuple[str, int], Upcaster]] = {}
"""By type and schema version: what turns data of that version into data of the next one.

An upcaster is never changed once its next version has been written somewhere: what it makes of an
old event has been published.
"""


class UpcastError(ValueError):
    """An upcaster could not make sense of an event's data."""


def upcast(type_: str, schema_version: int, data: Data) -> tuple[int, Data]:
    """Return the newest schema version that there are upcasters to, and the data in it.

    What is up to date, newer or unknown comes back as it is.
    """
    while (step := UPCASTERS.get((type_, schema_version))) is not None:
        try:
            data = step(data)
        except Exception as error:
            reason = f"{type(error).__name__} in its upcaster"
            raise UpcastError(f"{type_} of schema version {schema_version}: {reason}") from error
        schema_version += 1
    return schema_version, data
