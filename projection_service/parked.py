"""Parked events: look at them, apply them after a fix, or give one up."""

from dataclasses import dataclass
from datetime import datetime

from projection_service.projections.changes import Move
from projection_service.projections.fold import fold, keys, read
from projection_service.read_model import ReadModel
from shared.messages.cloud_event import CloudEvent
from shared.postgres.connection import Connection, Session
from shared.postgres.statements import statement

_LIST_PARKED = statement("projection_service", "list_parked")
_SHOW_PARKED = statement("projection_service", "show_parked")
_FENCE_PROJECTOR = statement("projection_service", "fence_projector")
_UNPARK = statement("projection_service", "unpark")
_DISCARD = statement("projection_service", "discard")


@dataclass(frozen=True, slots=True)
class ParkedPatient:
    """A patient whose events wait, because the first of them could not be applied."""

    patient_id: str
    partition: int
    events: int
    first_position: int
    reason: str
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """One event that waits."""

    partition: int
    position: int
    event: str
    """JSON."""
    reason: str
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of a patient's parked events."""

    applied: int
    left: int
    reason: str | None
    """Why the first one left can't be applied still."""


async def list_parked(connection: Connection) -> list[ParkedPatient]:
    """List the patients who have parked events."""
    return [ParkedPatient(*row) for row in await connection.fetch(_LIST_PARKED)]


async def show_parked(connection: Session, patient_id: str) -> list[ParkedEvent]:
    """Show a patient's parked events, in order."""
    return [ParkedEvent(*row) for row in await connection.fetch(_SHOW_PARKED, patient_id)]


async def retry_parked(connection: Session, patient_id: str) -> Retried:
    """Apply a patient's parked events in order, up to the first that still can't be applied.

    One transaction; the worker that projects the partition begins anew after it.
    """
    async with connection.transaction():
        waiting, epoch = await _fenced(connection, patient_id)
        facts = [(event, read(event)) for event in waiting]
        model = ReadModel(connection)
        changes = fold(facts, await model.read_consents(keys(facts)), {})
        left = changes.parked
        changes.parked = []
        applied = [event.position for event in waiting[: len(waiting) - len(left)]]
        if applied:
            partition = waiting[0].partition
            checkpoint = (await model.open_checkpoint(partition)).position
            changes.moves = {partition: Move(epoch, checkpoint, checkpoint)}
            await model.project(changes)
            await connection.execute(_UNPARK, patient_id, applied)
    return Retried(len(applied), len(left), left[0].reason if left else None)


async def discard_parked(connection: Connection, patient_id: str, position: int) -> bool:
    """Give up one parked event for good; whether it was there.

    The patient's later events stay parked until they are retried. That it was given up is kept,
    so that a rebuild does not park it again.
    """
    async with connection.transaction():
        await _fenced(connection, patient_id)
        return bool(await connection.fetch(_DISCARD, patient_id, position))


async def _fenced(connection: Session, patient_id: str) -> tuple[list[CloudEvent], int]:
    """Read a patient's parked events, and the epoch under which nobody else adds to them."""
    parked = await show_parked(connection, patient_id)
    if not parked:
        return [], 0
    epoch: int = await connection.fetchval(_FENCE_PROJECTOR, parked[0].partition)
    parked = await show_parked(connection, patient_id)
    return [CloudEvent.model_validate_json(event.event) for event in parked], epoch
