"""Writes what happened into the mirror's file: consents, and how far each log is taken, at once."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from shared.client.mirror.database import identity, open_to_write, sql, transaction
from shared.client.mirror.ends import NOTHING, Ends, evolve
from shared.client.mirror.moments import Moment
from shared.errors import NotNow
from shared.event_log.set_back import LogPlace, place_of
from shared.messages.cloud_event import CloudEvent
from shared.messages.events import ConsentEvent, UnknownEventError
from shared.values.vocabulary import Grantee

READ_ENDS: Final = sql("read_ends")
WRITE_ENDS: Final = sql("write_ends")
DROP_ENDS: Final = sql("drop_ends")
DROP_PATIENT: Final = sql("drop_patient")
MOVE_PARTITION: Final = sql("move_partition")
NOTE_COMPLETE: Final = sql("note_complete")
READ_PARTITIONS: Final = sql("read_partitions")
READ_UNREADABLE: Final = sql("read_unreadable")
ADD_UNREADABLE: Final = sql("add_unreadable")
REMOVE_UNREADABLE: Final = sql("remove_unreadable")
WRITE_TROUBLE: Final = sql("write_trouble")


class Key(NamedTuple):
    """Whose consent for whom."""

    patient_id: str
    entity_name: str
    entity_id: str


class Writer:
    """The one process that writes the file.

    Were there two, in spite of the lock, each transaction moves its partitions from exactly where
    this writer left them, or nothing is written: no event is taken twice, and none left out.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._identity = identity(path)
        self._connection = connection
        self._unreadable = {row[0] for row in connection.execute(READ_UNREADABLE)}
        self.reached: list[LogPlace] = [
            LogPlace(*row[:3]) for row in connection.execute(READ_PARTITIONS)
        ]
        """By partition."""

    @classmethod
    @contextmanager
    def open(cls, path: Path, partitions: int) -> Iterator["Writer"]:
        """Open the file, or make it; raises SettingsError, SchemaError, and NotNow."""
        try:
            connection = open_to_write(path, partitions)
        except sqlite3.Error as error:
            raise _unwritable(path, error) from error
        try:
            yield cls(path, connection)
        finally:
            connection.close()

    @property
    def unreadable(self) -> frozenset[str]:
        """Patients of whom nothing can be said."""
        return frozenset(self._unreadable)

    def apply(self, events: Sequence[CloudEvent], complete: Mapping[int, Moment]) -> None:
        """Apply what follows in some partitions, and note which of them are complete by it."""
        reached = list(self.reached)
        changed: dict[Key, Ends] = {}
        unreadable: set[str] = set()
        for event in events:
            reached[event.partition] = place_of(event)
            if event.subject not in self._unreadable | unreadable:
                fact = read(event)
                if fact is None:
                    unreadable.add(event.subject)
                else:
                    self._fold(event.subject, fact, changed)
        with self._transaction():
            self._move(reached)
            self._write(changed)
            self._connection.executemany(ADD_UNREADABLE, [(one,) for one in unreadable])
            self._note(complete, reached)
        self.reached = reached
        self._unreadable |= unreadable

    def note_complete(self, complete: Mapping[int, Moment]) -> None:
        """Note when all that these partitions' logs had was known here.

        Raises NotNow where another file has been put in this one's place.
        """
        try:
            replaced = identity(self._path) != self._identity
        except FileNotFoundError:
            replaced = True
        if replaced:
            raise NotNow(f"the mirror's file {self._path} was removed or replaced: begin anew")
        with self._transaction():
            self._note(complete, self.reached)

    def note_trouble(self, reason: str | None, *, set_back: bool = False) -> None:
        """Note why nothing new comes in, for all who read the file; None: something does again."""
        with self._transaction():
            self._connection.execute(WRITE_TROUBLE, (reason, set_back))

    def replace_patient(
        self, patient_id: str, partition: int, events: Iterable[ConsentEvent]
    ) -> None:
        """Make one patient's consents anew from all that happened up to where its partition is."""
        changed: dict[Key, Ends] = {}
        for event in events:
            key = _key(patient_id, event.grantee)
            changed[key] = evolve(changed.get(key, NOTHING), event)
        reached = self.reached[partition]
        with self._transaction():
            self._move_one(partition, reached, reached)
            self._connection.execute(DROP_PATIENT, (patient_id,))
            self._write(changed)
            self._connection.execute(REMOVE_UNREADABLE, (patient_id,))
        self._unreadable.discard(patient_id)

    def _fold(self, patient_id: str, fact: ConsentEvent, changed: dict[Key, Ends]) -> None:
        key = _key(patient_id, fact.grantee)
        before = changed.get(key) or self._ends(key)
        after = evolve(before, fact)
        if after != before:
            changed[key] = after

    def _ends(self, key: Key) -> Ends:
        row: Ends | None = self._connection.execute(READ_ENDS, key).fetchone()
        return row or NOTHING

    def _move(self, reached: Sequence[LogPlace]) -> None:
        for number, (before, after) in enumerate(zip(self.reached, reached, strict=True)):
            if after != before:
                self._move_one(number, before, after)

    def _move_one(self, number: int, before: LogPlace, after: LogPlace) -> None:
        place = (after.position, after.event_id, after.generation)
        self._expect_one(MOVE_PARTITION, (*place, number, before.position))

    def _write(self, changed: Mapping[Key, Ends]) -> None:
        for key, ends in changed.items():
            if ends == NOTHING:
                self._connection.execute(DROP_ENDS, key)
            else:
                self._connection.execute(WRITE_ENDS, (*key, *ends))

    def _note(self, complete: Mapping[int, Moment], reached: Sequence[LogPlace]) -> None:
        for number, moment in complete.items():
            self._expect_one(NOTE_COMPLETE, (*moment, number, reached[number].position))

    def _expect_one(self, statement: str, parameters: tuple[object, ...]) -> None:
        if self._connection.execute(statement, parameters).rowcount != 1:
            raise NotNow(f"another process writes the mirror's file {self._path}: begin anew")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what is done in the block; raises NotNow where the disk is full, for example."""
        try:
            with transaction(self._connection):
                yield
        except sqlite3.Error as error:
            raise _unwritable(self._path, error) from error


def read(event: CloudEvent) -> ConsentEvent | None:
    """Read what happened; None where this version can't."""
    try:
        return event.event()
    except (UnknownEventError, ValidationError):
        return None


def _unwritable(path: Path, error: sqlite3.Error) -> NotNow:
    return NotNow(f"the mirror's file {path} can't be written: {error}")


def _key(patient_id: str, grantee: Grantee) -> Key:
    return Key(patient_id, *grantee)
