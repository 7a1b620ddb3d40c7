"""A patient's state as it is kept beside the log, to spare reading a long history. Pure."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from immutables import Map
from pydantic import BaseModel, TypeAdapter, ValidationError

from command_service.domain.decisions import Stream
from command_service.domain.patient import Patient, Subject, Types
from shared.messages.timestamp import Moment
from shared.values.vocabulary import Entity, Grantee, RecordType

FORMAT: Final = 3
"""Raise it with every change of what `Patient` holds or `evolve` does: older snapshots are ignored
then, and taken anew."""
EVERY: Final = 200
"""Events after which there is a newer snapshot; to replay them takes as long as to write it."""
GRANTEES_PER_EVENT: Final = 10
"""A large state is written more seldom, so that its writing costs each event no more."""

Grouped = dict[str, dict[Entity, list[str]]]
"""The ids of grantees by entity, by what they have: record types, joined by commas."""
_TYPES: Final[TypeAdapter[frozenset[RecordType]]] = TypeAdapter(frozenset[RecordType])


End = tuple[Entity, str, RecordType, Moment]


class State(BaseModel):
    """A patient, with many grantees that have the same in few words."""

    granted: Grouped
    requested: Grouped
    ends: list[End]


class SnapshotError(ValueError):
    """A snapshot can't be trusted: somebody changed it, or it is of another stream."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One row beside the log."""

    stream_id: str
    version: int
    state: str
    """JSON."""
    digest: bytes


def is_due(stream: Stream) -> bool:
    """Whether so much has happened since the last snapshot that another one pays."""
    grantees = len(stream.state.granted) + len(stream.state.requested)
    enough = max(EVERY, grantees // GRANTEES_PER_EVENT)
    return stream.version - stream.snapshot_version >= enough


def take(stream_id: str, stream: Stream) -> Snapshot:
    """Write a state down."""
    patient = stream.state
    kept = State(
        granted=_grouped(patient.granted),
        requested=_grouped(patient.requested),
        ends=[(*each.grantee, each.record_type, end) for each, end in patient.ends.items()],
    )
    state = kept.model_dump_json()
    return Snapshot(stream_id, stream.version, state, _digest(stream_id, stream.version, state))


def restore(snapshot: Snapshot) -> Stream:
    """Read a state back; raises SnapshotError where it is not what `take` wrote."""
    expected = _digest(snapshot.stream_id, snapshot.version, snapshot.state)
    if snapshot.digest != expected:
        raise SnapshotError("its digest is wrong")
    try:
        state = State.model_validate_json(snapshot.state)
        granted, requested = _ungrouped(state.granted), _ungrouped(state.requested)
    except ValidationError as error:
        raise SnapshotError("its state can't be read") from error
    ends = Map(
        (Subject(Grantee(entity, id_), named), end) for entity, id_, named, end in state.ends
    )
    patient = Patient(granted, requested, ends, min(ends.values(), default=None))
    return Stream(snapshot.version, patient, snapshot.version)


def _grouped(map_: Types) -> Grouped:
    groups: dict[frozenset[RecordType], dict[Entity, list[str]]] = {}
    for (entity, id_), types in map_.items():
        groups.setdefault(types, {}).setdefault(entity, []).append(id_)
    return {",".join(sorted(types)): entities for types, entities in groups.items()}


def _ungrouped(groups: Grouped) -> Types:
    return Map(
        (Grantee(entity, id_), types)
        for joined, entities in groups.items()
        for types in [_TYPES.validate_python(joined.split(","))]
        for entity, ids in entities.items()
        for id_ in ids
    )


def _digest(stream_id: str, version: int, state: str) -> bytes:
    content = f"{FORMAT}\0{version}\0{stream_id}\0{state}"
    return blake2b(content.encode(), digest_size=16).digest()
