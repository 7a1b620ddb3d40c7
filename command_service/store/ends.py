"""The ends of consents that are to be recorded when they come, in their order."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from shared.postgres.connection import Queryable
from shared.postgres.statements import statement

_READ_DUE_ENDS: Final = statement("command_service", "read_due_ends")
_FORGET_ENDS: Final = statement("command_service", "forget_ends")


class DueEnd(NamedTuple):
    """The end of some consents of one patient, which has come."""

    partition: int
    expires_at: datetime
    stream_id: str
    overdue_s: float


class Ends:
    """Reads what is due, and forgets what was looked into; the append adds to it."""

    def __init__(self, database: Queryable) -> None:
        self._database = database

    async def read_due(
        self, partitions: Sequence[int], most: int, without: Sequence[str]
    ) -> list[DueEnd]:
        """Find the earliest ends that have come in these partitions, but for these patients'."""
        rows = await self._database.fetch(_READ_DUE_ENDS, partitions, most, without)
        return [DueEnd(*row) for row in rows]

    async def forget(self, ends: Sequence[DueEnd], epochs: Mapping[int, int]) -> None:
        """Forget these, where their partitions are still owned under these epochs."""
        await self._database.execute(
            _FORGET_ENDS,
            list(epochs),
            list(epochs.values()),
            [end.partition for end in ends],
            [end.expires_at for end in ends],
            [end.stream_id for end in ends],
        )
