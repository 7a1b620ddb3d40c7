"""Decides a harmless command and takes it back, to know whether any command could be decided.

What fails for every command is wrong around it: the schema, a trigger, a disk that is full. Whoever
blames a message for an error rehearses first.
"""

from itertools import count
from typing import Final
from uuid import uuid4

import asyncpg

from command_service.domain.decisions import EMPTY, Batch
from command_service.domain.fingerprint import fingerprint
from command_service.domain.received import Received
from command_service.store.event_store import EventStore
from shared.errors import SurroundingsWrong
from shared.errors.text import words_of
from shared.messages.commands import GrantConsent
from shared.values.partition import Lease, partition_of

PATIENT: Final = "rehearsal"
_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


class Rehearsal:
    """Goes through the statements of the command path, in a transaction that is rolled back."""

    def __init__(self, store: EventStore, partitions: int) -> None:
        self._store = store
        self._partitions = partitions

    async def hold(self, lease: Lease) -> None:
        """Return where a command of this partition can be decided.

        Raises SurroundingsWrong where the database refuses, and as `append` does.
        """
        received = _harmless(lease.partition, self._partitions)
        try:
            async with self._store.on_trial() as store:
                await _decide(store, received, lease)
        except _LOST:
            raise
        except asyncpg.PostgresError as error:
            raise SurroundingsWrong(
                f"the event store refuses any command, not only one: {words_of(error)}"
            ) from error


async def _decide(store: EventStore, received: Received, lease: Lease) -> None:
    patient_id = received.patient_id
    receipts = await store.read_receipts([received.command_id])
    streams = await store.read_streams([patient_id])
    batch = Batch(receipts, {patient_id: EMPTY, **streams})
    batch.answer(received, uuid4)
    await store.append(list(batch.decided.values()), {lease.partition: lease.epoch})


def _harmless(partition: int, partitions: int) -> Received:
    ids = (f"{PATIENT}-{number}" for number in count())
    patient_id = next(
        candidate for candidate in ids if partition_of(candidate, partitions) == partition
    )
    command = GrantConsent(patient_id=patient_id, to_entity="doctor", to_id=PATIENT, target="exams")
    return Received(uuid4(), command, fingerprint(command), partition, PATIENT)
