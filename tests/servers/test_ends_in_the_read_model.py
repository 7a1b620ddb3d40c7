"""What has an end: the read model's answers, past, present and to come, against a simple model."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_service.domain.patient import INITIAL, decide, evolve, expire
from command_service.domain.rejections import Rejected
from projection_service.answers.check_consents import Checks
from projection_service.answers.history_queries import Past
from projection_service.answers.read_questions import Questions
from projection_service.projections.consents import NOTHING, Consent
from projection_service.projections.fold import fold, read
from projection_service.purge_history import purge_history
from projection_service.read_model import ReadModel
from shared.messages.cloud_event import CloudEvent
from shared.messages.commands import (
    AskConsent,
    ConsentCommand,
    DenyConsent,
    GrantConsent,
    RevokeConsent,
    WithdrawRequest,
)
from shared.messages.events import (
    ConsentAsked,
    ConsentDenied,
    ConsentEvent,
    ConsentExpired,
    ConsentGranted,
    ConsentRevoked,
    RequestWithdrawn,
)
from shared.messages.queries import (
    Actor,
    Answered,
    Ended,
    Entry,
    HasConsent,
    ListConsents,
    Question,
)
from shared.messages.timestamp import timestamp
from shared.postgres.connection import Pool
from shared.postgres.database import open_pool
from shared.values.vocabulary import RECORD_TYPES, Grantee, RecordType, Target, record_types
from tests.servers.test_history import PATIENT, Right, Tables, batches, project, whole

BEGAN: Final = datetime(2026, 3, 1, tzinfo=UTC)
TICK: Final = timedelta(microseconds=1)
TARGETS: Final[tuple[Target, ...]] = (*RECORD_TYPES, "all")
FAR: Final = timedelta(days=100_000)
WHO: Final = (Grantee("doctor", "d-1"), Grantee("nurse", "n'1"))
COMMANDS: Final = ("grant", "grant", "grant", "ask", "revoke", "deny", "withdraw", "expire")


class Step(NamedTuple):
    """Something that is wanted, when, and how long it takes to be recorded."""

    kind: str
    who: Grantee
    target: Target
    end: int | None
    """Ticks from the beginning; -1 is far in the future."""
    later: int
    delay: int
    new_batch: bool


steps = st.builds(
    Step,
    st.sampled_from(COMMANDS),
    st.sampled_from(WHO),
    st.sampled_from([*RECORD_TYPES[:2], "all"]),
    st.none() | st.integers(-1, 20),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)


def end_of(step: Step) -> datetime | None:
    if step.end is None:
        return None
    return BEGAN + (FAR if step.end < 0 else step.end * TICK)


def command_of(step: Step) -> ConsentCommand:
    base: dict[str, Any] = {"patient_id": PATIENT, "target": step.target}
    to: dict[str, Any] = {"to_entity": step.who.entity, "to_id": step.who.id}
    by: dict[str, Any] = {"by_entity": step.who.entity, "by_id": step.who.id}
    match step.kind:
        case "grant":
            return GrantConsent(**base, **to, expires_at=end_of(step))
        case "ask":
            return AskConsent(**base, **by, expires_at=end_of(step))
        case "revoke":
            return RevokeConsent(**base, from_entity=step.who.entity, from_id=step.who.id)
        case "deny":
            return DenyConsent(**base, **to)
        case _:
            return WithdrawRequest(**base, **by)


def event(version: int, fact: ConsentEvent, at: datetime) -> CloudEvent:
    """Write an event of the patient's log, whose positions are its versions."""
    return CloudEvent(
        id=str(UUID(int=version)),
        type=type(fact).__name__,
        subject=PATIENT,
        time=timestamp(at),
        schemaversion=fact.schema_version,
        partition=0,
        position=version,
        streamversion=version,
        correlationid="c",
        causationid=str(UUID(int=10**6 + version)),
        data=json.loads(fact.to_json()),
    )


def log_of(taken: Iterable[Step]) -> tuple[list[CloudEvent], list[bool]]:
    """Play the command service with a clock of its own; say also where batches begin."""
    now, state = BEGAN, INITIAL
    log: list[CloudEvent] = []
    begins: list[bool] = []
    for step in taken:
        now += step.later * TICK
        try:
            wanted = step.kind != "expire"
            facts = decide(state, command_of(step), now) if wanted else expire(state, PATIENT, now)
        except Rejected:
            continue
        now += step.delay * TICK
        for number, fact in enumerate(facts):
            state = evolve(state, fact)
            log.append(event(len(log) + 1, fact, now))
            begins.append(step.new_batch or (number > 0 and step.later % 2 == 1))
    return log, begins


# The simple model.


def standing_at(log: Iterable[CloudEvent], moment: datetime) -> dict[Right, datetime | None]:
    """Fold the log up to a moment, and leave out whose end has come: what is held, until when."""
    held: dict[Right, datetime | None] = {}
    for one in log:
        if one.time > timestamp(moment):
            break
        fact = one.event()
        right = (fact.grantee, fact.target)
        match fact:
            case ConsentGranted():
                held[right] = fact.expires_at
            case ConsentRevoked() | ConsentExpired():
                held.pop(right, None)
            case ConsentAsked() | ConsentDenied() | RequestWithdrawn():
                pass
    return {right: end for right, end in held.items() if end is None or moment < end}


def asked_for(log: Iterable[CloudEvent]) -> dict[Right, datetime | None]:
    """Tell what waits for an answer, and the end of each newest request."""
    asked: dict[Right, datetime | None] = {}
    for one in log:
        fact = one.event()
        if isinstance(fact, ConsentAsked):
            asked[fact.grantee, fact.target] = fact.expires_at
        elif isinstance(fact, ConsentGranted | ConsentDenied | RequestWithdrawn):
            asked.pop((fact.grantee, fact.target), None)
    return asked


def how_ended(log: Sequence[CloudEvent], grant: CloudEvent, now: datetime) -> object:
    """Say from the log alone what became of a grant: how it ended, when, by which version."""
    granted = grant.event()
    assert isinstance(granted, ConsentGranted)
    end = granted.expires_at
    for later in log[grant.streamversion :]:
        fact = later.event()
        if (fact.grantee, fact.target) != (granted.grantee, granted.target):
            continue
        at = datetime.fromisoformat(later.time)
        if isinstance(fact, ConsentGranted | ConsentRevoked | ConsentExpired):
            if end is not None and end <= at:
                return ("expired", end, later.streamversion)
            cause = "extended" if isinstance(fact, ConsentGranted) else "revoked"
            return (cause, at, later.streamversion)
    return ("expired", end, None) if end is not None and end <= now else None


def how_answered(log: Sequence[CloudEvent], ask: CloudEvent) -> object:
    asked = ask.event()
    for later in log[ask.streamversion :]:
        fact = later.event()
        if (fact.grantee, fact.target) == (asked.grantee, asked.target):
            match fact:
                case ConsentGranted():
                    return ("granted", later.streamversion)
                case ConsentDenied():
                    return ("denied", later.streamversion)
                case RequestWithdrawn():
                    return ("withdrawn", later.streamversion)
                case _:
                    continue
    return None


def instants(log: Iterable[CloudEvent]) -> list[datetime]:
    """List every moment of change and every end, and the moments just before and after them."""
    moments = {BEGAN, *(datetime.fromisoformat(one.time) for one in log)}
    for one in log:
        fact = one.event()
        if isinstance(fact, ConsentGranted) and fact.expires_at:
            moments.add(fact.expires_at)
    return sorted({at + off * TICK for at in moments for off in (-1, 0, 1)})


# Pure: the log cut into batches anywhere.


class EndsTables(Tables):
    """What the statement `project` does to the tables, in memory."""

    def standing(self, moment: datetime) -> dict[Right, datetime | None]:
        held: dict[Right, datetime | None] = {}
        for span in self.spans:
            kind, began, ended = span.matter.kind, span.began.at, span.ended
            over = [ended.cause.at] if ended else []
            over += [span.expires_at] if span.expires_at else []
            if kind == "period" and began <= moment and all(moment < at for at in over):
                right = (Grantee(*span.matter[1:3]), span.matter.record_type)
                assert right not in held, "two periods at once"
                held[right] = span.expires_at
        return held

    @property
    def consents(self) -> dict[Grantee, Consent]:
        found = {key.grantee: consent for key, consent in self.changes.consents.items()}
        return {who: consent for who, consent in found.items() if consent != NOTHING}


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=25))
def test_at_every_moment_that_is_in_force_which_was_granted_and_has_not_ended(
    taken: list[Step],
) -> None:
    log, begins = log_of(taken)
    tables = EndsTables()
    for batch in batches(log, begins):
        tables.project(batch)
    for moment in instants(log):
        assert tables.standing(moment) == standing_at(log, moment), timestamp(moment)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=25))
def test_what_is_kept_of_each_grantee_is_what_the_log_says(taken: list[Step]) -> None:
    log, begins = log_of(taken)
    cut, uncut = EndsTables(), EndsTables()
    for batch in batches(log, begins):
        cut.project(batch)
    uncut.project(log)
    assert cut.consents == uncut.consents
    assert cut.spans == uncut.spans
    last = datetime.fromisoformat(log[-1].time) if log else BEGAN
    held = {
        (who, record_type): consent.ends.get(record_type)
        for who, consent in cut.consents.items()
        for record_type in consent.permissions
        if record_type not in consent.ends or last < consent.ends[record_type]
    }
    assert held == standing_at(log, last)
    asked = {
        (who, record_type): consent.requested_ends.get(record_type)
        for who, consent in cut.consents.items()
        for record_type in consent.requested
    }
    assert asked == asked_for(log)
    assert all(set(consent.ends) <= consent.permissions for consent in cut.consents.values())
    assert all(
        set(consent.requested_ends) <= consent.requested for consent in cut.consents.values()
    )


def granted(end: datetime | None = None) -> ConsentGranted:
    return ConsentGranted(
        patient_id=PATIENT, to_entity="doctor", to_id="d-1", target="exams", expires_at=end
    )


def expired(end: datetime) -> ConsentExpired:
    return ConsentExpired(
        patient_id=PATIENT, to_entity="doctor", to_id="d-1", target="exams", expires_at=end
    )


def test_an_end_that_is_recorded_removes_only_the_consent_that_ends_then() -> None:
    tables = EndsTables()
    tables.project([event(1, granted(BEGAN + TICK), BEGAN), event(2, granted(), BEGAN)])
    tables.project([event(3, expired(BEGAN + TICK), BEGAN + 2 * TICK)])
    assert tables.consents[WHO[0]] == Consent(frozenset({"exams"}))
    assert tables.standing(BEGAN + 9 * TICK) == {(WHO[0], "exams"): None}


def test_a_grant_recorded_after_its_own_end_was_never_in_force() -> None:
    tables = EndsTables()
    end = BEGAN + TICK
    log = [event(1, granted(end), end + TICK), event(2, expired(end), end + 2 * TICK)]
    for one in log:
        tables.project([one])
        assert all(not tables.standing(moment) for moment in instants(log))
    (span,) = tables.spans
    assert span.ended
    assert (span.ended.how, span.ended.cause.at) == ("expired", end)


# Through PostgreSQL.


def random_log(seed: int) -> tuple[list[CloudEvent], list[bool]]:
    random = Random(seed)  # noqa: S311 - not for secrets
    return log_of(
        Step(
            random.choice(COMMANDS),
            random.choice(WHO),
            random.choice(TARGETS),
            random.choice([None, -1, *(number + random.randint(1, 20) for _ in range(3))]),
            random.randint(0, 2),
            random.randint(0, 3),
            random.random() < 0.4,
        )
        for number in range(200)
    )


@pytest.fixture(params=[1, 2])
async def played(request: pytest.FixtureRequest, read_model_pool: Pool) -> list[CloudEvent]:
    """Project a random log, cut anywhere."""
    log, begins = random_log(request.param)
    checkpoint = 0
    for batch in batches(log, begins):
        await project(read_model_pool, batch, checkpoint)
        checkpoint += len(batch)
    kinds = {one.type for one in log}
    assert {"ConsentGranted", "ConsentRevoked", "ConsentExpired", "ConsentDenied"} <= kinds
    return log


def questions(at: datetime | None) -> Iterator[HasConsent]:
    for who in WHO:
        for target in TARGETS:
            yield HasConsent(
                patient_id=PATIENT,
                entity_name=who.entity,
                entity_id=who.id,
                permission=target,
                at=at,
            )


def expected(question: HasConsent, held: dict[Right, datetime | None]) -> object:
    """Say what the model answers, and until when a yes is valid: the earliest end."""
    who = Grantee(question.entity_name, question.entity_id)
    rights = [(who, record_type) for record_type in record_types(question.permission)]
    if not held.keys() >= set(rights):
        return (False, None)
    return (True, min((end for right in rights if (end := held[right])), default=None))


async def test_every_moment_past_and_to_come_is_answered_as_the_model_does(
    played: list[CloudEvent], read_model_pool: Pool
) -> None:
    for moment in [*instants(played), datetime.now(UTC), BEGAN + 2 * FAR]:
        asked = list(questions(moment))
        found = await Past(read_model_pool).had_consent(asked)
        held = standing_at(played, moment)
        for question, answer in zip(asked, found, strict=True):
            allowed = answer.consent.allows(question.permission)
            until = answer.consent.valid_until(question.permission) if allowed else None
            assert (allowed, until) == expected(question, held), question


async def test_the_present_is_answered_and_listed_as_the_model_does(
    played: list[CloudEvent], read_model_pool: Pool
) -> None:
    held, asked_ = standing_at(played, datetime.now(UTC)), asked_for(played)
    asked = list(questions(None))
    for question, answer in zip(
        asked, await ReadModel(read_model_pool).has_consent(asked), strict=True
    ):
        allowed = answer.consent.allows(question.permission)
        until = answer.consent.valid_until(question.permission) if allowed else None
        assert (allowed, until) == expected(question, held), question
    (page,) = await ReadModel(read_model_pool).list_consents([ListConsents(patient_id=PATIENT)])
    assert page.consents == [
        entry for who in sorted(WHO) if (entry := _entry(who, held, asked_)) is not None
    ]


def _entry(
    who: Grantee, held: dict[Right, datetime | None], asked: dict[Right, datetime | None]
) -> Entry | None:
    def mine(rights: dict[Right, datetime | None]) -> dict[RecordType, datetime | None]:
        return {named: rights[w, named] for w, named in sorted(rights) if w == who}

    def ends(rights: dict[Right, datetime | None]) -> dict[RecordType, datetime] | None:
        return {named: end for named, end in mine(rights).items() if end is not None} or None

    if not mine(held) and not mine(asked):
        return None
    return Entry(
        entity_name=who.entity,
        entity_id=who.id,
        permissions=list(mine(held)),
        requested=list(mine(asked)),
        until=ends(held),
        requested_until=ends(asked),
    )


async def test_the_history_tells_how_each_period_ended_and_each_request_was_answered(
    played: list[CloudEvent], read_model_pool: Pool
) -> None:
    found = await whole(read_model_pool, limit=7)
    now = datetime.now(UTC)
    grants = {one.streamversion: one for one in played if one.type == "ConsentGranted"}
    assert {period.granted.version for period in found.periods} == grants.keys()
    for period in found.periods:
        grant = grants[period.granted.version]
        assert period.until == grant.event().expires_at  # type: ignore[union-attr]
        assert _told(period.ended) == how_ended(played, grant, now), period
    for request in found.requests:
        ask = played[request.asked.version - 1]
        assert request.until == ask.event().expires_at  # type: ignore[union-attr]
        assert _told_answer(request.answered) == how_answered(played, ask), request
    asks = {one.streamversion for one in played if one.type == "ConsentAsked"}
    assert {request.asked.version for request in found.requests} == asks


def _told(ended: Ended | None) -> object:
    return ended and (ended.cause, ended.at, ended.version)


def _told_answer(answered: Answered | None) -> object:
    return answered and (answered.how, answered.version)


async def test_a_page_of_a_list_holds_as_many_as_asked_for_however_many_have_ended(
    read_model_pool: Pool,
) -> None:
    end = BEGAN + TICK
    log = [
        event(
            number,
            ConsentGranted(
                patient_id=PATIENT,
                to_entity="doctor",
                to_id=f"d-{number:02}",
                target="exams",
                expires_at=None if number % 10 == 0 else end,
            ),
            BEGAN,
        )
        for number in range(1, 61)
    ]
    await project(read_model_pool, log, 0)
    model = ReadModel(read_model_pool)
    query = ListConsents(patient_id=PATIENT, limit=4)
    (first,) = await model.list_consents([query])
    assert [one.entity_id for one in first.consents] == ["d-10", "d-20", "d-30", "d-40"]
    (rest,) = await model.list_consents([query.model_copy(update={"after": first.next})])
    assert [one.entity_id for one in rest.consents] == ["d-50", "d-60"]
    assert rest.next is None


# The clock that counts is that of the database that is asked.


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_a_consent_ends_by_the_clock_of_the_database_that_is_read(
    read_model_url: str, minutes: int
) -> None:
    apart = {"search_path": "apart, pg_catalog, public"}
    pool = await open_pool(read_model_url, name="test", size=1, settings=apart)
    await pool.execute("CREATE SCHEMA apart")
    await pool.execute(
        f"""CREATE FUNCTION apart.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
            RETURN pg_catalog.clock_timestamp() + interval '{minutes} minutes'"""
    )
    theirs = await pool.fetchval("SELECT clock_timestamp()")
    model = ReadModel(pool)
    try:
        for number, (end, is_over) in enumerate(
            [(theirs - timedelta(minutes=1), True), (theirs + timedelta(minutes=5), False)]
        ):
            began = theirs - timedelta(days=1)
            await project(pool, [event(number + 1, granted(end), began)], number)
            (held,) = await model.has_consent([next(questions(None))])
            assert held.consent.allows("exams") is not is_over
            (page,) = await model.list_consents([ListConsents(patient_id=PATIENT)])
            assert bool(page.consents) is not is_over
            ended = (await whole(pool, limit=9)).periods[-1].ended
            assert _told(ended) == (("expired", end, None) if is_over else None)
    finally:
        pool.terminate()


async def checked(pool: Pool, at: datetime | None = None) -> dict[HasConsent, bool]:
    """Ask in one message whether each grantee may see each record type, and all of them."""
    asked = list(questions(at))
    each = [
        Question(
            patient_id=one.patient_id,
            actors=[Actor(entity_name=one.entity_name, entity_id=one.entity_id)],
            permission=one.permission,
            at=at,
        )
        for one in asked
    ]
    (answer,) = await Checks(pool, lambda _: None).check([Questions(each)])
    return {one: word == "yes" for one, word in zip(asked, answer.answers, strict=True)}


async def allowed(pool: Pool) -> dict[HasConsent, bool]:
    """Ask the same in messages of their own."""
    asked = list(questions(None))
    found = await ReadModel(pool).has_consent(asked)
    return {
        one: answer.consent.allows(one.permission) for one, answer in zip(asked, found, strict=True)
    }


@pytest.mark.parametrize("purged", [False, True], ids=["all of it known", "purged meanwhile"])
async def test_many_questions_are_answered_as_each_alone_after_every_batch(
    read_model_pool: Pool, *, purged: bool
) -> None:
    log, begins = random_log(3)
    checkpoint, yes = 0, 0
    for batch in batches(log, begins):
        await project(read_model_pool, batch, checkpoint)
        checkpoint += len(batch)
        if purged and checkpoint > len(log) / 2:
            async with read_model_pool.acquire() as connection:
                await purge_history(connection, timedelta(days=1))  # type: ignore[arg-type]
        answers = await checked(read_model_pool)
        assert answers == await allowed(read_model_pool), checkpoint
        yes += sum(answers.values())
    assert 0 < yes < checkpoint * len(answers)


@pytest.mark.parametrize("seed", range(6))
async def test_versions_that_come_twice_or_go_back_make_no_yes_of_a_no(
    read_model_pool: Pool, seed: int
) -> None:
    """Nobody who keeps to the contract publishes such events; whoever does opens no record."""
    log, begins = random_log(seed)
    random = Random(seed)  # noqa: S311 - not for secrets
    log = [one.model_copy(update={"streamversion": random.randint(1, 8)}) for one in log]
    checkpoint = 0
    for batch in batches(log, begins):
        await project(read_model_pool, batch, checkpoint)
        checkpoint += len(batch)
        answers, each = await checked(read_model_pool), await allowed(read_model_pool)
        assert not [one for one, yes in answers.items() if yes and not each[one]], checkpoint
    assert checkpoint == len(log)


def test_an_event_that_changes_nothing_parks_nobody() -> None:
    log = [event(1, expired(BEGAN), BEGAN)]
    changes = fold([(one, read(one)) for one in log], {}, {})
    assert (changes.parked, changes.spans.begun, changes.spans.ended) == ([], [], {})


async def test_a_purge_removes_what_has_ended_by_itself_though_that_is_not_recorded(
    read_model_pool: Pool,
) -> None:
    end = BEGAN + TICK
    ask = ConsentAsked(
        patient_id=PATIENT, by_entity="nurse", by_id="n'1", target="exams", expires_at=end
    )
    log = [event(1, granted(end), BEGAN), event(2, ask, BEGAN)]
    log.append(event(3, granted(BEGAN + FAR), BEGAN + 2 * TICK))
    await project(read_model_pool, log, 0)
    async with read_model_pool.acquire() as connection:
        await connection.execute("UPDATE consent_history SET ended_version = NULL, ended_at = NULL")
        day = timedelta(days=1)
        counted = await purge_history(connection, day, dry_run=True)  # type: ignore[arg-type]
        purged = await purge_history(connection, day)  # type: ignore[arg-type]
    assert (counted.periods, counted.requests) == (purged.periods, purged.requests) == (1, 0)
    await project(read_model_pool, [event(4, expired(end), BEGAN + 3 * TICK)], 3)
    found = await whole(read_model_pool, limit=9)
    assert [period.until for period in found.periods] == [BEGAN + FAR]
    assert [request.answered for request in found.requests] == [None], "it waits for an answer"
