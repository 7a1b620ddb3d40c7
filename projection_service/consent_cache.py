"""What is known of recent patients, so that it need not be read before each change.

True as long as nobody else writes to their partitions. Whoever else changes the read model raises
the epoch first; the next change is refused then, which ends the session, and this with it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from projection_service.projections.changes import Changes, Held, Key
from projection_service.projections.consents import NOTHING, Consent
from projection_service.projections.fold import Fact, keys
from projection_service.read_model import ReadModel
from shared.messages.cloud_event import CloudEvent
from shared.values.vocabulary import Grantee

MOST_CONSENTS: Final = 50_000
"""Of all patients together: some 30 MB."""
MOST_EACH: Final = 100
"""Of one patient; where there are more, they are forgotten, and read again one by one."""


@dataclass(eq=False, slots=True)
class CachedPatient:
    """One patient."""

    partition: int
    is_complete: bool
    """Whether every consent that exists is known: so it is from the first event on."""
    version: int | None = None
    """To which it was projected; None where that was before it was known."""
    parked: int | None = None
    """The position of the first parked event."""
    consents: dict[Grantee, Consent] = field(default_factory=dict)
    """NOTHING for one that is known not to exist."""

    @property
    def size(self) -> int:
        """How much memory it takes, counted in consents."""
        return 1 + len(self.consents)

    def knows(self, grantee: Grantee) -> bool:
        """Whether this consent need not be read."""
        return self.is_complete or grantee in self.consents

    def keep(self, grantee: Grantee, consent: Consent) -> None:
        """Know one consent."""
        self.consents[grantee] = consent
        if len(self.consents) > MOST_EACH:
            self.consents.clear()
            self.is_complete = False


class ConsentCache:
    """Bounded: the least recently used go first."""

    def __init__(self, read_model: ReadModel, most: int = MOST_CONSENTS) -> None:
        self._read_model = read_model
        self._most = most
        self._patients: OrderedDict[str, CachedPatient] = OrderedDict()
        self._size = 0

    def version(self, patient_id: str) -> int | None:
        """Tell to which version a patient was projected here; None where that is not known."""
        known = self._patients.get(patient_id)
        return known.version if known else None

    def recall(self, patient_id: str, grantee: Grantee) -> Held | None:
        """Tell what the last change here has left, where it is known and has no end.

        What has one is compared with the database's clock.
        """
        known = self._patients.get(patient_id)
        if known is None or known.version is None or not known.knows(grantee):
            return None
        consent = known.consents.get(grantee, NOTHING)
        return None if consent.ends else Held(known.version, consent)

    async def load(
        self, facts: Sequence[tuple[CloudEvent, Fact]]
    ) -> tuple[dict[Key, Consent], dict[str, int]]:
        """Tell the consents that these events may change, before they do.

        And the first parked position of each of their patients who has one.
        """
        known, misses = self._lookup(event for event, _ in facts)
        wanted = keys(facts)
        unknown = [key for key in wanted if not known[key.patient_id].knows(key.grantee)]
        read = await self._read(unknown, {patient_id: known[patient_id] for patient_id in misses})
        consents = {
            key: read.get(key) or known[key.patient_id].consents.get(key.grantee, NOTHING)
            for key in wanted
        }
        return consents, {
            id_: patient.parked for id_, patient in known.items() if patient.parked is not None
        }

    def note(self, changes: Changes) -> None:
        """Know what has changed, of those who are not forgotten meanwhile."""
        for key, consent in changes.consents.items():
            if known := self._patients.get(key.patient_id):
                self._size -= known.size
                known.keep(key.grantee, consent)
                self._size += known.size
        for patient_id, version in changes.versions.items():
            if known := self._patients.get(patient_id):
                known.version = version
        for event in changes.parked:
            if (known := self._patients.get(event.patient_id)) and known.parked is None:
                known.parked = event.position
        while self._size > self._most:
            _, oldest = self._patients.popitem(last=False)
            self._size -= oldest.size

    def forget(self, partition: int) -> None:
        """Forget the patients of a partition, since others may have written to it."""
        theirs = [
            patient_id
            for patient_id, known in self._patients.items()
            if known.partition == partition
        ]
        for patient_id in theirs:
            self._size -= self._patients.pop(patient_id).size

    def _lookup(self, events: Iterable[CloudEvent]) -> tuple[dict[str, CachedPatient], list[str]]:
        """Find each patient, or make room; and tell of whom there may be something to read."""
        known: dict[str, CachedPatient] = {}
        misses = []
        for event in events:
            patient_id = event.subject
            if patient_id in known:
                continue
            if patient_id in self._patients:
                self._patients.move_to_end(patient_id)
            else:
                begins = event.streamversion == 1
                self._patients[patient_id] = patient = CachedPatient(
                    event.partition, is_complete=begins
                )
                self._size += patient.size
                misses += [] if begins else [patient_id]
            known[patient_id] = self._patients[patient_id]
        return known, misses

    async def _read(
        self, unknown: Sequence[Key], misses: Mapping[str, CachedPatient]
    ) -> dict[Key, Consent]:
        """Read the consents that exist among these, and what is parked of those who were missed."""
        if not misses:
            return await self._read_model.read_consents(unknown)
        consents, parked = await asyncio.gather(
            self._read_model.read_consents(unknown), self._read_model.read_parked(list(misses))
        )
        for patient_id, position in parked.items():
            misses[patient_id].parked = position
        return consents
