"""Consent that ends by itself: the rules, and a model checker with a clock of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from command_service.domain.decisions import EMPTY, Batch, Decision, Receipt, Stream
from command_service.domain.fingerprint import fingerprint
from command_service.domain.patient import INITIAL, Patient, Subject, decide, expire, fold
from command_service.domain.received import Received
from command_service.domain.rejections import (
    ConsentAlreadyGranted,
    ConsentNotGranted,
    ConsentNotRequested,
    ExpiryNotInTheFuture,
    GrantTooLong,
)
from command_service.domain.replay import replay
from command_service.domain.snapshot import FORMAT, take
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
from shared.messages.replies import CommandAccepted, CommandRejected
from shared.values.vocabulary import RECORD_TYPES, Grantee, RecordType, Target, record_types

START: Final = datetime(2026, 11, 26, 12, tzinfo=UTC)
FRIDAY: Final = START + timedelta(days=1)
LATER: Final = FRIDAY + timedelta(days=7)
TICK: Final = timedelta(microseconds=1)
DOCTOR: Final = Grantee("doctor", "d-1")
EXAMS: Final = Subject(DOCTOR, "exams")


def grant(target: Target = "exams", until: datetime | None = None) -> GrantConsent:
    return GrantConsent(
        patient_id="p", to_entity="doctor", to_id="d-1", target=target, expires_at=until
    )


def ask(target: Target = "exams", until: datetime | None = None) -> AskConsent:
    return AskConsent(
        patient_id="p", by_entity="doctor", by_id="d-1", target=target, expires_at=until
    )


def revoke(target: Target = "exams") -> RevokeConsent:
    return RevokeConsent(patient_id="p", from_entity="doctor", from_id="d-1", target=target)


def deny(target: Target = "exams") -> DenyConsent:
    return DenyConsent(patient_id="p", to_entity="doctor", to_id="d-1", target=target)


def withdraw(target: Target = "exams") -> WithdrawRequest:
    return WithdrawRequest(patient_id="p", by_entity="doctor", by_id="d-1", target=target)


def after(*commands: ConsentCommand, now: datetime = START) -> Patient:
    state = INITIAL
    for command in commands:
        state = fold(state, decide(state, command, now))
    return state


# The algebra


@pytest.mark.parametrize(
    ("standing", "given"), [(FRIDAY, LATER), (FRIDAY, None)], ids=["a later end", "no end"]
)
def test_a_grant_extends_what_ends_earlier(standing: datetime, given: datetime | None) -> None:
    state = after(grant(until=standing))
    (event,) = decide(state, grant(until=given), START)
    assert isinstance(event, ConsentGranted)
    assert event.expires_at == given
    assert fold(state, [event]).ends.get(EXAMS) == given


@pytest.mark.parametrize(
    ("standing", "given"),
    [(FRIDAY, FRIDAY), (FRIDAY, FRIDAY - TICK), (None, FRIDAY), (None, None)],
    ids=["the same end", "an earlier end", "an end where there is none", "no end again"],
)
@pytest.mark.parametrize("command", [grant, ask], ids=["grant", "ask"])
def test_what_would_add_nothing_is_refused_and_the_end_that_stands_is_told(
    command: Any,  # noqa: ANN401 - either of two functions
    standing: datetime | None,
    given: datetime | None,
) -> None:
    with pytest.raises(ConsentAlreadyGranted) as refused:
        decide(after(grant(until=standing)), command(until=given), START)
    told = [(detail.field, detail.message) for detail in refused.value.details]
    end = "exams is granted until 2026-11-27T12:00:00.000000Z"
    assert told == ([("expires_at", end)] if standing else [])


def test_all_touches_the_record_types_that_gain() -> None:
    state = after(grant("exams"), grant("conditions", FRIDAY), grant("er_visits", LATER))
    gained = decide(state, grant("all", LATER), START)
    assert [event.target for event in gained] == ["consultations", "conditions"]


@pytest.mark.parametrize("end", [START - TICK, START], ids=["in the past", "at now"])
@pytest.mark.parametrize("command", [grant, ask], ids=["grant", "ask"])
def test_an_end_must_be_in_the_future(
    command: Any,  # noqa: ANN401 - either of two functions
    end: datetime,
) -> None:
    with pytest.raises(ExpiryNotInTheFuture) as refused:
        decide(INITIAL, command(until=end), START)
    assert refused.value.details[0].field == "expires_at"
    assert decide(INITIAL, command(until=end), end - TICK)


def test_who_has_consent_until_friday_may_ask_for_longer() -> None:
    (event,) = decide(after(grant(until=FRIDAY)), ask(until=LATER), START)
    assert isinstance(event, ConsentAsked)
    assert event.expires_at == LATER


def test_what_has_ended_is_not_granted_any_more_though_nobody_recorded_it() -> None:
    state = after(grant(until=FRIDAY))
    assert state.holds(EXAMS, FRIDAY - TICK)
    assert not state.holds(EXAMS, FRIDAY)
    with pytest.raises(ConsentNotGranted):
        decide(state, revoke(), FRIDAY)
    assert decide(state, revoke(), FRIDAY - TICK)


def test_an_end_that_came_is_recorded_once_and_one_that_no_longer_stands_never() -> None:
    state = after(grant("all", FRIDAY), grant("exams", LATER), revoke("conditions"))
    assert expire(state, "p", FRIDAY - TICK) == []
    events = expire(state, "p", FRIDAY)
    assert [event.target for event in events] == ["consultations", "er_visits"]
    assert expire(fold(state, events), "p", FRIDAY) == []


def test_an_expiry_takes_only_the_end_that_it_names() -> None:
    late = ConsentExpired(
        patient_id="p", to_entity="doctor", to_id="d-1", target="exams", expires_at=FRIDAY
    )
    assert fold(after(grant(until=LATER)), [late]).holds(EXAMS, FRIDAY)


def test_the_longest_grant_that_is_allowed_here_limits_grants_and_asks() -> None:
    day = timedelta(days=1)
    assert decide(INITIAL, grant(until=FRIDAY), START, day)
    for command in (grant(until=FRIDAY + TICK), grant(), ask(until=LATER), ask()):
        with pytest.raises(GrantTooLong) as refused:
            decide(INITIAL, command, START, day)
        assert refused.value.details[0].field == "expires_at"


# Requests


@pytest.mark.parametrize("command", [deny, withdraw], ids=["deny", "withdraw"])
def test_a_request_ends_and_leaves_what_is_granted(
    command: Any,  # noqa: ANN401 - either of two functions
) -> None:
    state = after(grant("exams", FRIDAY), ask("all"))
    events = decide(state, command("all"), START)
    assert [event.target for event in events] == list(RECORD_TYPES)
    ended = fold(state, events)
    assert ended.requested.get(DOCTOR) is None
    assert ended.granted == state.granted
    with pytest.raises(
        ConsentNotRequested, match=r"^doctor d-1 does not ask for consent to exams$"
    ):
        decide(ended, command("exams"), START)


# The model checker

Kept = dict[Subject, datetime | None]
GRANTEES: Final = (DOCTOR, Grantee("nurse", "n-1"))


@dataclass
class Model:
    """The simplest that can be thought of: what is held until when, and what is asked for."""

    held: Kept = field(default_factory=dict)
    asked: set[Subject] = field(default_factory=set)

    def holds(self, subject: Subject, now: datetime) -> bool:
        end = self.held.get(subject, now)
        return end is None or now < end

    def expire(self, now: datetime) -> set[tuple[Subject, datetime]]:
        """Let go what has ended, and say what that was."""
        due = {(held, end) for held, end in self.held.items() if end is not None and end <= now}
        for held, _ in due:
            del self.held[held]
        return due

    def changed_by(self, command: ConsentCommand, now: datetime) -> list[RecordType]:
        """Apply a command; return the record types that it changes, none where it is refused."""
        named = [Subject(command.grantee, each) for each in record_types(command.target)]
        match command:
            case GrantConsent() | AskConsent():
                changed = self._gained(named, command.expires_at, now)
                if isinstance(command, GrantConsent):
                    self.held |= dict.fromkeys(changed, command.expires_at)
                    self.asked -= set(changed)
                else:
                    self.asked |= set(changed)
            case RevokeConsent():
                changed = [each for each in named if self.holds(each, now)]
                for each in changed:
                    del self.held[each]
            case DenyConsent() | WithdrawRequest():
                changed = [each for each in named if each in self.asked]
                self.asked -= set(changed)
        return [each.record_type for each in changed]

    def _gained(self, named: list[Subject], end: datetime | None, now: datetime) -> list[Subject]:
        if end is not None and end <= now:
            return []
        forever = datetime.max.replace(tzinfo=UTC)
        return [
            each
            for each in named
            if not self.holds(each, now) or (self.held[each] or forever) < (end or forever)
        ]


ticks = st.integers(0, 12)
targets = st.sampled_from([*RECORD_TYPES, "all"])
kinds = st.sampled_from(["grant", "grant", "ask", "revoke", "deny", "withdraw"])
wishes = st.tuples(kinds, st.sampled_from(GRANTEES), targets, st.none() | ticks)
repeats = st.integers(0, 5)


class Checker(RuleBasedStateMachine):
    """One patient, one log, owners that come and go; the clock moves when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.model = Model()
        self.log: list[tuple[datetime, ConsentEvent]] = []
        self.stream: Stream = EMPTY
        self.receipts: dict[UUID, Receipt] = {}
        self.sent: list[tuple[UUID, ConsentCommand]] = []
        self.ids = self._fresh_ids()

    @staticmethod
    def _fresh_ids() -> Iterator[UUID]:
        return (UUID(int=number) for number in count(1))

    @rule(step=st.integers(1, 4))
    def time_passes(self, step: int) -> None:
        self.now += step * TICK

    @rule(step=st.integers(0, 3))
    def the_owner_looks_for_ends(self, step: int) -> None:
        batch = self._batch()
        batch.expire("p", 0, lambda: next(self.ids))
        expected = self.model.expire(self.now)
        self._append(batch, step)
        assert self._expired(len(expected)) == expected

    @rule(wanted=st.lists(wishes, min_size=1, max_size=4), step=st.integers(0, 3))
    def a_batch_of_commands_comes(self, wanted: list[Any], step: int) -> None:
        batch, expected, answers = self._batch(), list[list[RecordType]](), []
        expired = self.model.expire(self.now)
        for command in map(self._command, wanted):
            command_id = next(self.ids)
            self.sent.append((command_id, command))
            expected.append(self.model.changed_by(command, self.now))
            answers.append(batch.answer(self._received(command_id, command), self._next_id))
        before = len(self.log)
        self._append(batch, step)
        caused = self.log[before:]
        assert {self._end_of(event) for _, event in caused[: len(expired)]} == expired
        told = [
            [new.event.target for new in answer.events]
            for answer in answers
            if isinstance(answer, Decision)
        ]
        assert told == expected
        assert len(caused) == len(expired) + sum(map(len, expected))

    @rule(which=repeats, changed=st.booleans())
    def an_old_command_comes_again(self, which: int, changed: bool) -> None:
        if which >= len(self.sent):
            return
        command_id, command = self.sent[-1 - which]
        if changed:
            command = command.model_copy(update={"patient_id": "q"})
        batch = self._batch()
        answer = batch.answer(self._received(command_id, command), self._next_id)
        if changed:
            assert isinstance(answer, CommandRejected)
            assert answer.error == "command_id_conflict"
        else:
            assert answer is self.receipts[command_id]
        assert not batch.decided

    @rule(cut=st.floats(0, 1))
    def another_owner_takes_over(self, cut: float) -> None:
        """It knows what the log says, from the start or from a snapshot."""
        rows = [
            {
                "stream_id": "p",
                "stream_version": version,
                "type": type(event).__name__,
                "schema_version": event.schema_version,
                "data": event.to_json(),
            }
            for version, (_, event) in enumerate(self.log, start=1)
        ]
        known = round(cut * len(rows))
        if known:
            taken = take("p", replay(rows[:known]))
            snapshot = {
                "stream_id": "p", "stream_version": known, "type": None,
                "schema_version": FORMAT, "data": taken.state, "digest": taken.digest,
            }  # fmt: skip
            rows = [snapshot, *rows[known - 1 :]]
        self.stream = replay(rows) if rows else EMPTY

    @invariant()
    def the_state_is_the_models(self) -> None:
        state = self.stream.state
        for who in GRANTEES:
            for record_type in RECORD_TYPES:
                subject = Subject(who, record_type)
                assert state.holds(subject, self.now) == self.model.holds(subject, self.now)
                asked = record_type in state.requested.get(who, frozenset())
                assert asked == (subject in self.model.asked)
        assert state.next_end == min(state.ends.values(), default=None)

    @invariant()
    def each_end_is_told_once_and_only_where_it_stood(self) -> None:
        standing: Kept = {}
        for recorded_at, event in self.log:
            subject = Subject(event.grantee, event.target)
            match event:
                case ConsentGranted():
                    standing[subject] = event.expires_at
                case ConsentRevoked():
                    del standing[subject]
                case ConsentExpired():
                    assert standing.pop(subject) == event.expires_at <= recorded_at
                case ConsentAsked() | ConsentDenied() | RequestWithdrawn():
                    pass
        assert standing == self.model.held

    def _batch(self) -> Batch:
        return Batch(self.receipts, {"p": self.stream}, {0: self.now})

    def _append(self, batch: Batch, step: int) -> None:
        """Record a while later what was decided."""
        self.now += step * TICK
        for command_id, decision in batch.decided.items():
            self.log += [(self.now, new.event) for new in decision.events]
            outcome = CommandAccepted(
                command_id=str(command_id), patient_id="p", partition=0, version=1, events=[]
            )
            self.receipts[command_id] = Receipt(decision.received.fingerprint, outcome)
        self.stream = batch.streams["p"]

    def _next_id(self) -> UUID:
        return next(self.ids)

    def _received(self, command_id: UUID, command: ConsentCommand) -> Received:
        return Received(command_id, command, fingerprint(command), 0, "c")

    def _command(self, wish: tuple[str, Grantee, Target, int | None]) -> ConsentCommand:
        kind, (entity, id_), target, tick = wish
        end = None if tick is None else START + tick * TICK
        base: dict[str, Any] = {"patient_id": "p", "target": target}
        match kind:
            case "grant":
                return GrantConsent(**base, to_entity=entity, to_id=id_, expires_at=end)
            case "ask":
                return AskConsent(**base, by_entity=entity, by_id=id_, expires_at=end)
            case "revoke":
                return RevokeConsent(**base, from_entity=entity, from_id=id_)
            case "deny":
                return DenyConsent(**base, to_entity=entity, to_id=id_)
            case _:
                return WithdrawRequest(**base, by_entity=entity, by_id=id_)

    def _expired(self, many: int) -> set[tuple[Subject, datetime]]:
        return {self._end_of(event) for _, event in self.log[len(self.log) - many :]}

    @staticmethod
    def _end_of(event: ConsentEvent) -> tuple[Subject, datetime]:
        assert isinstance(event, ConsentExpired)
        return Subject(event.grantee, event.target), event.expires_at


Checker.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestChecker = Checker.TestCase
