"""What the projector keeps in mind of patients is what the read model has of them."""

from collections.abc import Sequence
from datetime import timedelta
from random import Random

import pytest

from projection_service import consent_cache
from projection_service.consent_cache import ConsentCache
from projection_service.projections.changes import Key, Move
from projection_service.projections.consents import Consent
from projection_service.projections.fold import Fact, fold, keys, read
from projection_service.read_model import ReadModel
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import HasConsent
from shared.messages.timestamp import timestamp
from shared.postgres.connection import Pool
from shared.values.vocabulary import RECORD_TYPES, Grantee
from tests.servers.test_history import BEGAN, PATIENT, VERBS, event

Loaded = tuple[dict[Key, Consent], dict[str, int]]


class CountedReadModel(ReadModel):
    """Notes what is read."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.strangers: list[str] = []
        self.keys: list[Key] = []

    async def read_parked(self, patient_ids: Sequence[str]) -> dict[str, int]:
        self.strangers += patient_ids
        return await super().read_parked(patient_ids)

    async def read_consents(self, keys: Sequence[Key]) -> dict[Key, Consent]:
        self.keys += keys
        return await super().read_consents(keys)


class Log:
    """One partition's log, by chance: some of its events can't be applied."""

    def __init__(self, seed: int, patients: int, doctors: int) -> None:
        self._random = Random(seed)  # noqa: S311 - it makes events
        self._patients = patients
        self._doctors = doctors
        self._versions: dict[str, int] = {}
        self._position = 0

    def batch(self, size: int) -> list[tuple[CloudEvent, Fact]]:
        return [(one, read(one)) for one in (self._next() for _ in range(size))]

    def _next(self) -> CloudEvent:
        chance = self._random
        patient = f"p-{chance.randrange(self._patients)}"
        version = self._versions[patient] = self._versions.get(patient, 0) + 1
        self._position += 1
        return event(
            version,
            chance.choice(sorted(VERBS)),
            Grantee("doctor", f"d-{chance.randrange(self._doctors)}"),
            chance.choice(RECORD_TYPES),
            at=BEGAN + timedelta(seconds=self._position),
            subject=patient,
            position=self._position,
            schemaversion=99 if chance.random() < 0.01 else 1,
        )


async def project(
    model: ReadModel, kept: ConsentCache, facts: Sequence[tuple[CloudEvent, Fact]], since: int
) -> Loaded:
    """Apply a batch; return what was known before it."""
    loaded = await kept.load(facts)
    consents, parked = loaded
    changes = fold(facts, consents, dict(parked))
    changes.moves = {0: Move(0, since, facts[-1][0].position)}
    await model.project(changes)
    kept.note(changes)
    return loaded


async def recalled(
    model: ReadModel, kept: ConsentCache, facts: Sequence[tuple[CloudEvent, Fact]]
) -> int:
    """Check that what is recalled of those whom a batch was about is what is read; count it."""
    whom = keys(facts)
    asked = [
        HasConsent(
            patient_id=key.patient_id, entity_name=key.grantee.entity, entity_id=key.grantee.id
        )
        for key in whom
    ]
    found = 0
    for key, held in zip(whom, await model.has_consent(asked), strict=True):
        if (mind := kept.recall(*key)) is not None:
            assert (mind.version, mind.consent.permissions) == (
                held.version,
                held.consent.permissions,
            )
            found += 1
    return found


@pytest.mark.parametrize(
    ("most", "most_each"), [(50_000, 100), (40, 100), (50_000, 3), (12, 3)], ids=str
)
async def test_what_is_known_is_what_the_read_model_has(
    read_model_pool: Pool, monkeypatch: pytest.MonkeyPatch, most: int, most_each: int
) -> None:
    monkeypatch.setattr(consent_cache, "MOST_EACH", most_each)
    model = ReadModel(read_model_pool)
    await model.open_checkpoint(0)
    kept, log, position = ConsentCache(model, most), Log(most + most_each, 15, 8), 0
    parked = found = 0
    for size in [1, 2, 30, 1, 1, 7] * 8:
        facts = log.batch(size)
        fresh = await ConsentCache(model).load(facts)
        assert await project(model, kept, facts, position) == fresh
        parked += len(fresh[1])
        found += await recalled(model, kept, facts)
        position = facts[-1][0].position
    assert parked, "no patient had anything parked"
    assert found, "nothing was recalled"


async def test_what_has_an_end_is_not_recalled_since_the_database_has_the_clock(
    read_model_pool: Pool,
) -> None:
    model = ReadModel(read_model_pool)
    await model.open_checkpoint(0)
    kept, doctor = ConsentCache(model), Grantee("doctor", "d-1")
    with_end = {
        "patient_id": PATIENT, "to_entity": "doctor", "to_id": "d-1", "target": "exams",
        "expires_at": timestamp(BEGAN + timedelta(days=1)),
    }  # fmt: skip
    first = event(1, "ConsentGranted", doctor, "exams", at=BEGAN, data=with_end)
    await project(model, kept, [(first, read(first))], 0)
    assert kept.recall(PATIENT, doctor) is None
    second = event(2, "ConsentGranted", doctor, "exams", at=BEGAN)
    await project(model, kept, [(second, read(second))], 1)
    held = kept.recall(PATIENT, doctor)
    assert held is not None
    assert held.version == 2


async def test_only_strangers_are_read_and_only_once(read_model_pool: Pool) -> None:
    model = CountedReadModel(read_model_pool)
    await model.open_checkpoint(0)
    log = Log(1, patients=5, doctors=3)
    kept = ConsentCache(model)
    await project(model, kept, log.batch(40), 0)
    assert (model.strangers, model.keys) == ([], []), "each patient began in this batch"
    kept.forget(1)
    await project(model, kept, log.batch(40), 40)
    assert (model.strangers, model.keys) == ([], []), "these are patients of another partition"
    kept.forget(0)
    for position in (80, 120, 160, 200):
        await project(model, kept, log.batch(40), position)
    assert sorted(model.strangers) == [f"p-{number}" for number in range(5)]
    assert len(set(model.keys)) == len(model.keys) > 0


async def test_no_more_is_kept_than_may_be(read_model_pool: Pool) -> None:
    model = CountedReadModel(read_model_pool)
    await model.open_checkpoint(0)
    log = Log(2, patients=60, doctors=4)
    kept, position = ConsentCache(model, most=20), 0
    for _ in range(10):
        await project(model, kept, log.batch(20), position)
        position += 20
    assert len(model.strangers) > len(set(model.strangers)), "what was let go is read again"
