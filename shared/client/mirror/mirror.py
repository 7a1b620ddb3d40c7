"""The mirror: answers who may see what from a file that it keeps up with the log by itself."""

import os
import threading
import weakref
from pathlib import Path
from sqlite3 import DatabaseError
from time import time_ns
from types import TracebackType
from typing import Final, Self

from shared.client.mirror.ends import PLACES, allows
from shared.client.mirror.keeper import Keeper, KeeperOptions
from shared.client.mirror.reading import Reading
from shared.errors import LogSetBack, SettingsError, Stale
from shared.values.partition import partition_of
from shared.values.vocabulary import ENTITIES, Entity, Target

MAX_AGE_S: Final = 10.0
LOOK_EVERY_S: Final = 2.0
NANOSECONDS: Final = 1000
"""In a microsecond."""


class ConsentMirror:
    """All consents, kept by a process that asks all day, in a file beside it.

    A `with` block keeps the file up to date, in a thread of its own with a connection of its own:
    from the beginning of the log where there is no file, else from where the file ends. Several
    processes of a host may give the same path: one of them keeps the file, the others read it, and
    another one takes over when that one dies. Its user of the broker needs the roles `subscriber`
    and `inquirer`. In a process that forks, open it in the child.

    Asking is no I/O but a read of memory that the file is mapped to, and may be done from any
    thread. Where what is known may be too old for the caller, it is refused: Stale.
    """

    def __init__(
        self,
        url: str,
        path: str | os.PathLike[str],
        *,
        partitions: int = 8,
        max_age: float = MAX_AGE_S,
        look_every: float = LOOK_EVERY_S,
    ) -> None:
        """`partitions` is the deployment's CONSENT_PARTITIONS.

        `max_age`, in seconds, is how old an answer may be where a question does not say so;
        `look_every`, how often the log is asked whether there is more: once for each partition.
        """
        self._path = Path(path)
        self._partitions = partitions
        self._max_age = max_age
        self._keeper = Keeper(KeeperOptions(url, self._path, partitions, look_every))
        self._open = False
        self._of_thread = threading.local()
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()
        _mirrors.add(self)

    def __enter__(self) -> Self:
        if not self._path.parent.is_dir():
            raise SettingsError(f"the mirror's file {self._path} has no folder: make it")
        self._keeper.start()
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        self._keeper.stop()
        self._of_thread = threading.local()  # each is closed when no thread reads by it any more

    def has_consent(
        self,
        patient_id: str,
        entity_name: Entity,
        entity_id: str,
        permission: Target = "all",
        *,
        max_age: float | None = None,
    ) -> bool:
        """Say whether somebody may see these records of this patient now, by this host's clock.

        The answer is as the log was at most `max_age` seconds ago, or newer. Raises Stale where
        that can't be promised, LogSetBack where the log is not the one that the file was made
        from, SettingsError and SchemaError where the file is of another deployment or version.
        """
        if permission not in PLACES or entity_name not in ENTITIES:
            raise ValueError(f"{entity_name} {permission}: no entity or no permission of that name")
        partition = partition_of(patient_id, self._partitions)
        allowed = self._max_age if max_age is None else max_age
        try:
            reading = self._reading()
            reading.expect_known(partition, patient_id, allowed)
            ends = reading.ends(patient_id, entity_name, entity_id)
        except (Stale, LogSetBack):
            self._forget_what_was_replaced()
            raise
        except DatabaseError as error:
            self._forget_what_was_replaced()
            raise Stale(f"the mirror's file {self._path} can't be read: {error}") from error
        return allows(ends, permission, time_ns() // NANOSECONDS)

    def as_of(self) -> dict[int, float]:
        """Say of each partition how many seconds ago all that its log had was known here.

        Infinity is said of one of which it never was. Raises what `has_consent` does.
        """
        try:
            return dict(enumerate(self._reading().ages()))
        except DatabaseError as error:
            raise Stale(f"the mirror's file {self._path} can't be read: {error}") from error

    def _begin_in_child(self) -> None:
        """Let go of all that belongs to the parent, and close nothing of it."""
        _of_parents.extend(self._readings)
        self._open = False
        self._of_thread = threading.local()
        self._readings = weakref.WeakSet()

    def _reading(self) -> Reading:
        """Return what this thread reads the file by."""
        reading: Reading | None = getattr(self._of_thread, "reading", None)
        if not self._open:
            raise Stale("nobody keeps this mirror up: ask in its `with` block, in one process")
        if reading is None:
            reading = self._of_thread.reading = Reading(self._path, self._partitions)
            self._readings.add(reading)
        return reading

    def _forget_what_was_replaced(self) -> None:
        """Open the file anew the next time, where it is another one by now."""
        reading: Reading | None = getattr(self._of_thread, "reading", None)
        if reading is not None and not reading.is_of_the_file():
            reading.close()
            del self._of_thread.reading


_mirrors: Final[weakref.WeakSet[ConsentMirror]] = weakref.WeakSet()
_of_parents: Final[list[Reading]] = []
"""What a fork has brought: SQLite allows a child neither to use it nor to close it."""


def _begin_in_child() -> None:
    for mirror in _mirrors:
        mirror._begin_in_child()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_begin_in_child)
