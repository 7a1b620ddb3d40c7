"""What one thread reads of the mirror's file: consents, and how much of the log they hold."""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from shared.client.mirror.database import identity, open_to_read, sql, transaction
from shared.client.mirror.ends import NOTHING
from shared.client.mirror.moments import Moment, clock, seconds_since
from shared.errors import LogSetBack, Stale

READ_ENDS: Final = sql("read_ends")
READ_PARTITIONS: Final = sql("read_partitions")
READ_TROUBLE: Final = sql("read_trouble")
READ_UNREADABLE: Final = sql("read_unreadable")

LOOK_AGAIN_S: Final = 0.1
"""For so long it is believed how much of the log the file holds: it can only become more."""


class Reading:
    """One connection to the file, and what the file said last of how much of the log it holds.

    Consents are read after that, over the same connection: so they are as new as it says, or newer.
    """

    def __init__(self, path: Path, partitions: int) -> None:
        """Raises Stale where there is no file yet, SettingsError and SchemaError for another's."""
        self._path = path
        self._complete: Sequence[Moment | None] = ()
        self._unreadable: frozenset[str] = frozenset()
        self._trouble: str | None = None
        self._looked_at = float("-inf")
        try:
            self._identity = identity(path)
            self._connection = open_to_read(path, partitions)
        except (OSError, sqlite3.Error) as error:
            raise Stale(f"the mirror's file {path} is not there yet, or not whole") from error

    def __del__(self) -> None:
        with suppress(AttributeError):  # where it was never open
            self.close()

    def close(self) -> None:
        """Close the connection; sqlite3.ProgrammingError is raised for what is asked later."""
        self._connection.close()

    def is_of_the_file(self) -> bool:
        """Whether the file that is read is the one that is there."""
        with suppress(FileNotFoundError):
            return identity(self._path) == self._identity
        return False

    def ends(self, patient_id: str, entity_name: str, entity_id: str) -> Sequence[int | None]:
        """Read until when somebody may see what of a patient."""
        found: Sequence[int | None] | None = self._connection.execute(
            READ_ENDS, (patient_id, entity_name, entity_id)
        ).fetchone()
        return NOTHING if found is None else found

    def expect_known(self, partition: int, patient_id: str, max_age_s: float) -> None:
        """Raise Stale where too little is known of a patient, or what is known is too old."""
        if clock() - self._looked_at > LOOK_AGAIN_S:
            self._look()
        age = seconds_since(self._complete[partition])
        if age > max_age_s:
            raise Stale(self._too_old(partition, age, max_age_s))
        if patient_id in self._unreadable:
            raise Stale(
                "an event of this patient can't be read by the version that keeps the mirror: "
                "upgrade it, or ask HasConsent"
            )

    def ages(self) -> list[float]:
        """Say of each partition for how many seconds it may not have been complete."""
        self._look()
        return [seconds_since(moment) for moment in self._complete]

    def _look(self) -> None:
        """Read how much of the log the file holds, and whether it is the right log."""
        connection, looked_at = self._connection, clock()
        with transaction(connection, "DEFERRED"):
            rows = connection.execute(READ_PARTITIONS).fetchall()
            self._trouble, set_back = connection.execute(READ_TROUBLE).fetchone()
            self._unreadable = frozenset(row[0] for row in connection.execute(READ_UNREADABLE))
        if set_back:
            raise LogSetBack(self._trouble)
        self._complete = [_moment(*row[3:]) for row in rows]
        self._looked_at = looked_at

    def _too_old(self, partition: int, age: float, max_age_s: float) -> str:
        known = "never" if age == float("inf") else f"{age:.1f} s ago"
        why = f" ({self._trouble})" if self._trouble else ""
        return (
            f"partition {partition} was known to its end {known}, and {max_age_s:g} s are "
            f"allowed{why}: ask HasConsent, or again a little later"
        )


def _moment(boot: str | None, clock_: float | None, wall: float | None) -> Moment | None:
    if boot is None or clock_ is None or wall is None:
        return None
    return Moment(boot, clock_, wall)
