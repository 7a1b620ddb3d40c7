"""Decides and appends in this process, as the command path does, without a broker."""

from collections.abc import Mapping, Sequence
from uuid import uuid4

from command_service.domain.decisions import EMPTY, Batch, Decision, Stream
from command_service.domain.fingerprint import fingerprint
from command_service.domain.received import Received
from command_service.store.event_store import EventStore
from shared.messages.commands import ConsentCommand, GrantConsent, RevokeConsent
from shared.values.partition import partition_of


def received(command: ConsentCommand, partitions: int) -> Received:
    """Make what decoding a delivery makes."""
    command_id = uuid4()
    return Received(
        command_id=command_id,
        command=command,
        fingerprint=fingerprint(command),
        partition=partition_of(command.patient_id, partitions),
        correlation_id=str(command_id),
    )


def grant(patient_id: str, doctor_id: str) -> GrantConsent:
    """Let a doctor see the exams."""
    return GrantConsent(patient_id=patient_id, to_entity="doctor", to_id=doctor_id, target="exams")


def revoke(patient_id: str, doctor_id: str) -> RevokeConsent:
    """Take that back."""
    return RevokeConsent(
        patient_id=patient_id, from_entity="doctor", from_id=doctor_id, target="exams"
    )


def decide(batch: Batch, commands: Sequence[Received]) -> list[Decision]:
    """Decide them all, in order."""
    answers = [batch.answer(one, uuid4) for one in commands]
    return [answer for answer in answers if isinstance(answer, Decision)]


class Writer:
    """Writes to partitions that nobody has taken, under their first epoch."""

    def __init__(self, store: EventStore, partitions: int) -> None:
        self.store = store
        self.partitions = partitions
        self._epochs = dict.fromkeys(range(partitions), 0)

    async def append(self, decisions: Sequence[Decision]) -> None:
        """Append what was decided, as a worker does after a look at the receipts."""
        await self.store.append(decisions, self._epochs, receipts_checked=True)

    async def handle(
        self, commands: Sequence[ConsentCommand], known: Mapping[str, Stream]
    ) -> dict[str, Stream]:
        """Load what is not known, decide and append; return their patients' states after it."""
        batch_of = [received(one, self.partitions) for one in commands]
        patients = {one.patient_id for one in commands}
        receipts = await self.store.read_receipts([one.command_id for one in batch_of])
        read = await self.store.read_streams(list(patients - known.keys()))
        here = {one: known[one] for one in patients & known.keys()}
        batch = Batch(receipts, {**dict.fromkeys(patients, EMPTY), **here, **read})
        await self.append(decide(batch, batch_of))
        return dict(batch.streams)


def decide_batches(
    batches: int, size: int, patients: int, partitions: int, name: str
) -> list[list[Decision]]:
    """Decide grants for new patients, one batch after another, without appending them."""
    streams: dict[str, Stream] = {}
    decided = []
    for number in range(batches):
        commands = [
            received(
                grant(f"{name}-{(number * size + n) % patients}", f"doctor-{number}-{n}"),
                partitions,
            )
            for n in range(size)
        ]
        for one in commands:
            streams.setdefault(one.command.patient_id, EMPTY)
        decided.append(decide(Batch({}, streams), commands))
    return decided
