"""Knows which partitions stand on what their log does not have any more, whoever works on them."""

import asyncio
from typing import Final

from projection_service.read_model import ReadModel
from shared.messages.queries import QueryFailed
from shared.telemetry.metrics import SET_BACK
from shared.telemetry.readiness import Readiness
from shared.values.partition import partition_of

LOOK_EVERY_S: Final = 0.5
"""Another worker may have noticed; one that notices itself looks at once."""
LOG: Final = "log"
"""Under what the readiness keeps it."""


class SetBacks:
    """Looks again and again; what it found is read for each answer."""

    def __init__(self, read_model: ReadModel, readiness: Readiness, partitions: int) -> None:
        self._read_model = read_model
        self._readiness = readiness
        self._count = partitions
        self._partitions: frozenset[int] = frozenset()
        self._told: frozenset[int] | None = None
        """Which of them the metrics tell of; a session of before may have told of others."""
        self._looking = asyncio.Lock()
        for number in range(partitions):
            SET_BACK.labels(number)

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            self._readiness.report(LOG)

    async def look(self) -> None:
        """Read which partitions they are, and tell the readiness and the metrics."""
        async with self._looking:  # what was read first is told first
            self._tell(frozenset(await self._read_model.read_set_back()))

    def _tell(self, found: frozenset[int]) -> None:
        if found != self._told:
            for number in range(self._count):
                SET_BACK.labels(number).set(number in found)
        self._partitions = self._told = found
        if found:
            self._readiness.report(LOG, "log_set_back", f"{_named(found)}: {REMEDY}")
        else:
            self._readiness.report(LOG)

    def refusal(self, patient_id: str) -> QueryFailed | None:
        """Say why nothing can be said of a patient; None where something can."""
        if not self._partitions:
            return None
        number = partition_of(patient_id, self._count)
        return _failed(number) if number in self._partitions else None

    def refusal_of_any(self) -> QueryFailed | None:
        """Say why nothing can be said that is about patients of all partitions."""
        return _failed(min(self._partitions)) if self._partitions else None


REMEDY: Final = (
    "its events are not what the read model was made of; bring the right log back, or take it as "
    "it is: `python -m command_service accept-log`, then `python -m projection_service rebuild`"
)


def _failed(number: int) -> QueryFailed:
    return QueryFailed(
        error="log_set_back",
        message=f"the log of partition {number} was set back, so that what is known of its "
        "patients may be wrong: ask again when its operator has decided",
    )


def _named(partitions: frozenset[int]) -> str:
    return f"the log of partition {', '.join(map(str, sorted(partitions)))} was set back"
