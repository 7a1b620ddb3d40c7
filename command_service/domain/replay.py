"""Reads a patient's state out of the rows of its history. Pure."""

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import ValidationError
from pydantic_core import from_json

from command_service.domain.decisions import EMPTY, Stream
from command_service.domain.snapshot import Snapshot, SnapshotError, restore
from shared.messages.events import ConsentEvent, UnknownEventError, read_event


class Row(Protocol):
    """What `read_streams` returns: a snapshot, or an event."""

    def __getitem__(self, column: str, /) -> Any: ...  # noqa: ANN401 - a row of the database


def replay(rows: Sequence[Row]) -> Stream:
    """Fold the rows of one stream.

    Raises SnapshotError where it begins with a snapshot that is not of this history.
    A history with an event that can't be read comes back as unreadable from there on.
    """
    first, *later = rows
    if first["type"] is not None:
        return _then(EMPTY, rows)
    stream = restore(_snapshot(first))
    if not later or later[0]["stream_version"] != stream.version:
        raise SnapshotError("the event that it ends with is not in the log")
    return _then(stream, later[1:])


def _then(stream: Stream, rows: Sequence[Row]) -> Stream:
    events: list[ConsentEvent] = []
    for row in rows:
        try:
            events.append(read_event(row["type"], row["schema_version"], from_json(row["data"])))
        except (UnknownEventError, ValidationError) as error:
            read = stream.then(events)
            return Stream(read.version, read.state, read.snapshot_version, _reason(row, error))
    return stream.then(events)


def _reason(row: Row, error: Exception) -> str:
    why = "its data is not valid" if isinstance(error, ValidationError) else str(error)
    return f"version {row['stream_version']} of its history: {why}"


def _snapshot(row: Row) -> Snapshot:
    return Snapshot(row["stream_id"], row["stream_version"], row["data"], row["digest"])
