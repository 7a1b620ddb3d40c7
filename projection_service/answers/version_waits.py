"""Who waits until patients are projected to some version, and how far these are. No I/O."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shared.messages.queries import QueryFailed
from shared.rabbitmq.consumer import Delivery

LOOK_AGAIN_S: Final = 0.02
"""How often the versions are looked up that are waited for: another worker may project them."""
LOOK_AGAIN_PER_PATIENT_S: Final = 0.0001
"""So much more seldom for each: so looking up, too, is a small part of the work."""
MOST_PATIENTS: Final = 5_000
"""Who are waited for at once; a CheckConsents waits for up to 500."""


@dataclass(frozen=True, slots=True, eq=False)
class PendingQuery:
    """A query in hand, and until when its versions may be waited for."""

    delivery: Delivery
    query: Any
    until: float
    needs: Mapping[str, int] = field(default_factory=dict)
    """To which version each of these patients must be projected first."""


class VersionWaits:
    """Those who wait, and what is known of their patients."""

    def __init__(self, most: int) -> None:
        """`most` queries wait at once."""
        self._most = most
        self._waiting: list[PendingQuery] = []
        self._versions: dict[str, int] = {}
        """Of the patients who are waited for: how far they are known to be projected."""
        self._look_from: dict[str, float] = {}
        """Of some who are waited for: before that moment it is enough to listen."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def look_again_s(self) -> float:
        """After how many seconds to look again, if nothing was heard."""
        return LOOK_AGAIN_S + LOOK_AGAIN_PER_PATIENT_S * len(self._versions)

    def version(self, patient_id: str) -> int:
        """Say how far a patient who is waited for is known to be projected."""
        return self._versions[patient_id]

    def add(
        self, pending: PendingQuery, projected: Callable[[str], int | None], now: float
    ) -> None:
        """Wait too; from here on it is noticed when these patients are projected.

        Who was projected here, and not so far yet, is listened for at first: that will be here too.
        """
        self._waiting.append(pending)
        for patient_id, version in pending.needs.items():
            reached = projected(patient_id)
            if reached is None or reached >= version:
                self._look_from.pop(patient_id, None)
            elif patient_id not in self._versions:
                self._look_from[patient_id] = now + LOOK_AGAIN_S
            self._versions.setdefault(patient_id, 0)

    def note(self, versions: Mapping[str, int]) -> bool:
        """Note versions that patients have reached; say whether somebody waits for one of them."""
        reached = self._versions.keys() & versions.keys()
        for patient_id in reached:
            self._versions[patient_id] = max(self._versions[patient_id], versions[patient_id])
        return bool(reached)

    def unreached(self, now: float) -> list[str]:
        """List the patients who are still waited for, and must be looked up.

        Where many wait that is everybody: some may have to be told how far their patient is.
        """
        is_crowded = (
            len(self._waiting) > self._most // 2 or len(self._versions) > MOST_PATIENTS // 2
        )
        return list(
            {
                patient_id
                for pending in self._waiting
                for patient_id, version in pending.needs.items()
                if self._versions[patient_id] < version
                and (is_crowded or self._look_from.get(patient_id, now) <= now)
            }
        )

    def take_there(self) -> list[PendingQuery]:
        """Take out whose versions are there."""
        there = [pending for pending in self._waiting if self._is_there(pending)]
        self._waiting = [pending for pending in self._waiting if not self._is_there(pending)]
        return there

    def take_too_late(self, now: float) -> list[PendingQuery]:
        """Take out who waited long enough, and who gives way where too many wait."""
        leaving = {pending for pending in self._waiting if pending.until <= now}
        staying = [pending for pending in self._waiting if pending not in leaving]
        leaving.update(_who_gives_way(staying, self._most))
        staying = [pending for pending in staying if pending not in leaving]
        leaving.update(_who_waits_for_too_many(staying))
        left = [pending for pending in self._waiting if pending in leaving]
        self._waiting = [pending for pending in self._waiting if pending not in leaving]
        return left

    def forget_others(self) -> None:
        """Forget the patients who are no longer waited for."""
        wanted = {patient_id for pending in self._waiting for patient_id in pending.needs}
        self._versions = {patient_id: self._versions[patient_id] for patient_id in wanted}
        self._look_from = {id_: at for id_, at in self._look_from.items() if id_ in wanted}

    def _is_there(self, pending: PendingQuery) -> bool:
        return all(
            self._versions[patient_id] >= version for patient_id, version in pending.needs.items()
        )


def _who_gives_way(waiting: Sequence[PendingQuery], most: int) -> Iterator[PendingQuery]:
    """Choose who waits no longer where too many do: of the patient whom most wait for, the newest.

    Where they are spread over many patients the newest of all gives way, so that a crowd does not
    push out who was there before it.
    """
    if len(waiting) <= most:
        return
    by_patient: dict[str, deque[PendingQuery]] = defaultdict(deque)
    for pending in reversed(waiting):
        by_patient[next(iter(pending.needs))].append(pending)
    for _ in range(len(waiting) - most):
        yield max(by_patient.values(), key=len).popleft()


def _who_waits_for_too_many(waiting: Sequence[PendingQuery]) -> Iterator[PendingQuery]:
    """Choose who waits no longer where they wait for too many: the largest, of these the newest."""
    excess = sum(len(pending.needs) for pending in waiting) - MOST_PATIENTS
    newest_first = list(reversed(waiting))
    for pending in sorted(newest_first, key=lambda pending: -len(pending.needs)):
        if excess <= 0:
            return
        excess -= len(pending.needs)
        yield pending


def too_early(version: int) -> QueryFailed:
    """Say that the projection has not reached the version in time, and how far it is."""
    return QueryFailed(
        error="not_yet_projected",
        message=f"the patient is projected to version {version}; ask again",
        version=version,
    )
