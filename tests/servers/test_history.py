"""The history agrees with a fold of the log up to any moment, at the instants of change too."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projection_service.answers.history_queries import Past
from projection_service.projections.changes import Changes, Move
from projection_service.projections.fold import fold, keys, read
from projection_service.projections.spans import Cause, Ending, Matter, Span, change_of
from projection_service.read_model import ReadModel
from shared.client.history_pages import joined
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import Change, ConsentHistory, Ended, HasConsent, History
from shared.messages.timestamp import timestamp
from shared.postgres.connection import Pool
from shared.values.vocabulary import RECORD_TYPES, Grantee, RecordType

PATIENT: Final = "p-1"
BEGAN: Final = datetime(2026, 3, 1, tzinfo=UTC)
INSTANT: Final = timedelta(microseconds=1)
WHO: Final = (Grantee("doctor", "d-1"), Grantee("patient", "d-1"), Grantee("nurse", "n'1"))
VERBS: Final = {"ConsentAsked": "by", "ConsentGranted": "to", "ConsentRevoked": "from"}

few = settings(max_examples=50, deadline=None)

Right = tuple[Grantee, RecordType]


def event(
    version: int, type_: str, who: Grantee, target: str, *, at: datetime, **change: object
) -> CloudEvent:
    """Write an event of the patient's log, whose positions are its versions."""
    side = VERBS[type_]
    data = {"patient_id": PATIENT, f"{side}_entity": who.entity, f"{side}_id": who.id}
    fields = {
        "id": str(UUID(int=version)),
        "type": type_,
        "subject": PATIENT,
        "time": timestamp(at),
        "schemaversion": 1,
        "partition": 0,
        "position": version,
        "streamversion": version,
        "correlationid": "c",
        "causationid": str(UUID(int=10**6 + version)),
        "issuedby": "clinic-a" if version % 2 else None,
        "data": {**data, "target": target},
    }
    return CloudEvent.model_validate(fields | change)


def granted_at(log: Iterable[CloudEvent], moment: datetime) -> set[Right]:
    """Fold the log up to a moment, what happened at that moment included."""
    granted: set[Right] = set()
    for one in log:
        if one.time <= timestamp(moment):
            who = Grantee(*(one.data[f"{VERBS[one.type]}_{name}"] for name in ("entity", "id")))
            if one.type == "ConsentGranted":
                granted.add((who, one.data["target"]))
            elif one.type == "ConsentRevoked":
                granted.discard((who, one.data["target"]))
    return granted


def instants(log: Iterable[CloudEvent]) -> list[datetime]:
    """List every moment of change, and the moments just before and after it."""
    changes = {datetime.fromisoformat(one.time) for one in log} | {BEGAN}
    return sorted({at + off for at in changes for off in (-INSTANT, timedelta(), INSTANT)})


def in_force(spans: Iterable[Span], moment: datetime) -> set[Right]:
    """Read the history as its contract says: from the grant on, up to and without the revoke."""
    return {
        (Grantee(span.matter.entity_name, span.matter.entity_id), span.matter.record_type)
        for span in spans
        if span.matter.kind == "period"
        and span.began.at <= moment
        and (span.ended is None or moment < span.ended.cause.at)
    }


def shown(cause: Cause) -> Change:
    return Change(
        at=cause.at, version=cause.version, command_id=cause.command_id, issued_by=cause.issued_by
    )


def revoked(cause: Cause) -> Ended:
    return Ended(cause="revoked", **dict(shown(cause)))


class Tables:
    """What the statement `project` does to the tables, in memory."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.spans: list[Span] = []

    def project(self, events: Sequence[CloudEvent]) -> None:
        found = fold([(one, read(one)) for one in events], self.changes.consents, {})
        for span in self.spans:
            if span.ended is None:
                span.ended = found.spans.ended.get(span.matter)
        self.spans += found.spans.begun
        self.changes.consents.update(found.consents)


steps = st.tuples(
    st.sampled_from(sorted(VERBS)),
    st.sampled_from(WHO),
    st.sampled_from(RECORD_TYPES[:2]),
    st.sampled_from([0, 0, 1, 10]),
    st.booleans(),
)
"""What, for whom, how many microseconds later, and whether a new batch begins with it."""


def log_of(taken: Sequence[tuple[str, Grantee, RecordType, int, bool]]) -> list[CloudEvent]:
    at, log = BEGAN, []
    for version, (type_, who, target, later, _) in enumerate(taken, 1):
        at += later * INSTANT
        log.append(event(version, type_, who, target, at=at))
    return log


def batches(log: Sequence[CloudEvent], begins: Sequence[bool]) -> Iterator[list[CloudEvent]]:
    batch: list[CloudEvent] = []
    for one, new in zip(log, begins, strict=True):
        if new and batch:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


@few
@given(st.lists(steps, max_size=20))
def test_at_every_moment_that_is_in_force_which_the_log_up_to_it_has_granted(
    taken: list[tuple[str, Grantee, RecordType, int, bool]],
) -> None:
    log, tables = log_of(taken), Tables()
    for batch in batches(log, [new for *_, new in taken]):
        tables.project(batch)
    for moment in instants(log):
        assert in_force(tables.spans, moment) == granted_at(log, moment)


@few
@given(st.lists(steps, max_size=20))
def test_every_ask_is_a_request_and_the_next_grant_answers_it(
    taken: list[tuple[str, Grantee, RecordType, int, bool]],
) -> None:
    log, tables = log_of(taken), Tables()
    for batch in batches(log, [new for *_, new in taken]):
        tables.project(batch)
    expected = {}
    for ask in (one for one in log if one.type == "ConsentAsked"):
        fact = ask.event()
        grants = (
            one.streamversion
            for one in log[ask.streamversion :]
            if one.type == "ConsentGranted"
            and (one.event().grantee, one.event().target) == (fact.grantee, fact.target)
        )
        expected[ask.streamversion] = next(grants, None)
    found = {
        span.began.version: span.ended and span.ended.cause.version
        for span in tables.spans
        if span.matter.kind == "request"
    }
    assert found == expected


@few
@given(st.lists(steps, max_size=20))
def test_how_the_log_is_cut_into_batches_makes_no_difference(
    taken: list[tuple[str, Grantee, RecordType, int, bool]],
) -> None:
    log, cut, whole = log_of(taken), Tables(), Tables()
    for batch in batches(log, [new for *_, new in taken]):
        cut.project(batch)
    whole.project(log)
    assert cut.spans == whole.spans


def test_a_grant_revoked_at_the_same_instant_is_kept_and_never_in_force() -> None:
    tables = Tables()
    who = WHO[0]
    tables.project(
        [
            event(1, "ConsentGranted", who, "exams", at=BEGAN),
            event(2, "ConsentRevoked", who, "exams", at=BEGAN),
        ]
    )
    (span,) = tables.spans
    assert span == Span(
        Matter(PATIENT, "doctor", "d-1", "exams", "period"),
        Cause(1, BEGAN, UUID(int=10**6 + 1), "clinic-a", UUID(int=1)),
        Ending(Cause(2, BEGAN, UUID(int=10**6 + 2), None, UUID(int=2))),
    )
    assert all(not in_force(tables.spans, moment) for moment in instants([]))


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"time": "yesterday"}, "its time, its id or its causation id is none"),
        ({"time": "2026-01-01T00:00:00"}, "its time has no zone"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "its time, its id or its causation id is none"),
        ({"causationid": "x"}, "its time, its id or its causation id is none"),
        ({"issuedby": "a\x00b"}, "its issuer is not text that can be kept"),
    ],
)
def test_an_event_whose_change_can_not_be_kept_is_parked(
    odd: dict[str, object], reason: str
) -> None:
    one = event(1, "ConsentGranted", WHO[0], "exams", at=BEGAN, **odd)
    assert change_of(one) == reason
    changes = fold([(one, read(one))], {}, {})
    assert [parked.reason for parked in changes.parked] == [reason]
    assert (changes.consents, changes.spans.begun) == ({}, [])


# Through PostgreSQL.


async def project(pool: Pool, events: Sequence[CloudEvent], checkpoint: int) -> None:
    model = ReadModel(pool)
    await model.open_checkpoint(0)
    facts = [(one, read(one)) for one in events]
    changes = fold(facts, await model.read_consents(keys(facts)), {})
    changes.moves = {0: Move(0, checkpoint, checkpoint + len(events))}
    await model.project(changes)


async def held_at(pool: Pool, moment: datetime) -> set[Right]:
    asked = [
        HasConsent(patient_id=PATIENT, entity_name=who.entity, entity_id=who.id, at=moment)
        for who in WHO
    ]
    found = await Past(pool).had_consent(asked)
    return {
        (who, target)
        for who, held in zip(WHO, found, strict=True)
        for target in held.consent.permissions
    }


async def whole(pool: Pool, *, limit: int) -> History:
    pages: list[History] = []
    after = None
    while not pages or after is not None:
        query = ConsentHistory(patient_id=PATIENT, limit=limit, after=after)
        (page,) = await Past(pool).read_history([query])
        assert len(page.periods) + len(page.requests) <= limit
        pages.append(page)
        after = page.next
    return joined(pages)


async def test_the_tables_answer_as_a_fold_of_a_random_log_does(read_model_pool: Pool) -> None:
    random = Random(20261123)  # noqa: S311 - not for secrets
    taken = [
        (
            random.choice(sorted(VERBS)),
            random.choice(WHO),
            random.choice(RECORD_TYPES),
            random.choice([0, 0, 1, 10]),
            random.random() < 0.1,
        )
        for _ in range(250)
    ]
    log, tables, checkpoint = log_of(taken), Tables(), 0
    for batch in batches(log, [new for *_, new in taken]):
        await project(read_model_pool, batch, checkpoint)
        checkpoint += len(batch)
        tables.project(batch)

    for moment in [*instants(log)[::7], BEGAN, BEGAN - INSTANT, datetime.now(UTC)]:
        assert await held_at(read_model_pool, moment) == granted_at(log, moment)
    found = await whole(read_model_pool, limit=500)
    assert (found.version, found.complete, found.known_since) == (250, True, None)
    assert len(found.periods) + len(found.requests) == len(tables.spans)
    for limit in (1, 7):
        assert await whole(read_model_pool, limit=limit) == found
    by_version = {one.granted.version: one for one in found.periods}
    for span in tables.spans:
        if span.matter.kind == "period":
            period = by_version[span.began.version]
            assert (period.entity_name, period.entity_id, period.record_type) == span.matter[1:4]
            assert period.granted == shown(span.began)
            assert period.ended == (span.ended and revoked(span.ended.cause))
