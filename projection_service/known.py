"""What is known of recent patients, so that it need not be read before each change.

True as long as nobody else writes to their partitions. Whoever else changes the read model raises
the epoch first; the next change is refused then, which ends the session, and this with it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from projection_service.consents import NOTHING, Consent
from projection_service.fold import Fact, keys
from projection_service.read_model import Changes, Key, ReadModel
from shared.cloud_event import CloudEvent
from shared.vocabulary import Grantee

MOST_CONSENTS: Final = 50_000
"""Of all patients together: some 30 MB."""
MOST_EACH: Final = 100
"""A patient with more consents has them read one by one."""


@dataclass(eq=False, slots=True)
class Known:
    """One patient."""

    partition: int
    consents: dict[Grantee, Consent] | None = field(default_factory=dict)
    """All that exist; None where they are too many."""
    parked: int | None = None
    """The position of the first parked event."""

    @property
    def size(self) -> int:
        """How much memory it takes, counted in consents."""
        return 1 + len(self.consents or ())


class KnownPatients:
    """Bounded: the least recently used go first."""

    def __init__(self, read_model: ReadModel, most: int = MOST_CONSENTS) -> None:
        self._read_model = read_model
        self._most = most
        self._patients: OrderedDict[str, Known] = OrderedDict()
        self._size = 0

    async def load(
        self, facts: Sequence[tuple[CloudEvent, Fact]]
    ) -> tuple[dict[Key, Consent], dict[str, int]]:
        """Tell which of the consents exist that these events may change.

        And the first parked position of each of their patients who has one.
        """
        await self._learn(event for event, _ in facts)
        wanted = keys(facts)
        many = [key for key in wanted if self._patients[key.patient_id].consents is None]
        consents = await self._read_model.read_consents(many)
        for key in wanted:
            found = (self._patients[key.patient_id].consents or {}).get(key.grantee)
            if found is not None:
                consents[key] = found
        patients = {event.subject: self._patients[event.subject].parked for event, _ in facts}
        return consents, {one: at for one, at in patients.items() if at is not None}

    def note(self, changes: Changes) -> None:
        """Know what has changed, of those who are not forgotten meanwhile."""
        for key, consent in changes.consents.items():
            if known := self._patients.get(key.patient_id):
                self._size -= known.size
                _keep(known, key.grantee, consent)
                self._size += known.size
        for one in changes.parked:
            if (known := self._patients.get(one.patient_id)) and known.parked is None:
                known.parked = one.position
        while self._size > self._most:
            _, oldest = self._patients.popitem(last=False)
            self._size -= oldest.size

    def forget(self, partition: int) -> None:
        """Forget the patients of a partition, since others may have written to it."""
        theirs = [one for one, known in self._patients.items() if known.partition == partition]
        for patient_id in theirs:
            self._size -= self._patients.pop(patient_id).size

    async def _learn(self, events: Iterable[CloudEvent]) -> None:
        """Know each of these patients: of one whose first event this is, there is nothing yet."""
        strangers: dict[str, int] = {}
        for event in events:
            if event.subject in self._patients:
                self._patients.move_to_end(event.subject)
            elif event.streamversion == 1:
                self._add(event.subject, Known(event.partition))
            else:
                strangers[event.subject] = event.partition
        if strangers:
            await self._read(strangers)

    async def _read(self, partitions: Mapping[str, int]) -> None:
        found = await self._read_model.read_patients(list(partitions), MOST_EACH + 1)
        for patient_id, (parked, consents) in found.items():
            few = consents if len(consents) <= MOST_EACH else None
            self._add(patient_id, Known(partitions[patient_id], few, parked))

    def _add(self, patient_id: str, known: Known) -> None:
        self._patients[patient_id] = known
        self._size += known.size


def _keep(known: Known, grantee: Grantee, consent: Consent) -> None:
    if known.consents is None:
        return
    if consent == NOTHING:
        known.consents.pop(grantee, None)
    else:
        known.consents[grantee] = consent
    if len(known.consents) > MOST_EACH:
        known.consents = None
