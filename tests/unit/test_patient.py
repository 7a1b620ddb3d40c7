"""The aggregate against the simplest model: a set of (grantee, record type)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_service.domain.patient import (
    INITIAL,
    MOST_REQUESTS,
    NOTHING,
    Patient,
    decide,
    evolve,
    fold,
)
from command_service.domain.rejections import (
    ConsentAlreadyGranted,
    ConsentNotGranted,
    Rejected,
    TooManyRequests,
)
from projection_service.projections import consents
from shared.messages.commands import AskConsent, ConsentCommand, GrantConsent, RevokeConsent
from shared.messages.events import ConsentAsked, ConsentEvent, ConsentGranted, ConsentRevoked
from shared.values.vocabulary import RECORD_TYPES, Grantee, RecordType, Target, record_types

NOW = datetime(2026, 11, 26, tzinfo=UTC)
DOCTOR = Grantee("doctor", "d-1")
TARGETS: tuple[Target, ...] = get_args(Target)

targets = st.sampled_from(TARGETS)
grantees = st.sampled_from([DOCTOR, Grantee("doctor", "d-2"), Grantee("patient", "d-1")])


def ask(target: Target, who: Grantee = DOCTOR) -> AskConsent:
    return AskConsent(patient_id="p", by_entity=who.entity, by_id=who.id, target=target)


def grant(target: Target, who: Grantee = DOCTOR) -> GrantConsent:
    return GrantConsent(patient_id="p", to_entity=who.entity, to_id=who.id, target=target)


def revoke(target: Target, who: Grantee = DOCTOR) -> RevokeConsent:
    return RevokeConsent(patient_id="p", from_entity=who.entity, from_id=who.id, target=target)


def asked(target: RecordType) -> ConsentAsked:
    return ConsentAsked(patient_id="p", by_entity="doctor", by_id="d-1", target=target)


def granted(target: RecordType) -> ConsentGranted:
    return ConsentGranted(patient_id="p", to_entity="doctor", to_id="d-1", target=target)


def revoked(target: RecordType) -> ConsentRevoked:
    return ConsentRevoked(patient_id="p", from_entity="doctor", from_id="d-1", target=target)


def having(*targets_: RecordType) -> Patient:
    return fold(INITIAL, [granted(target) for target in targets_])


commands = st.one_of(
    st.builds(ask, targets, grantees),
    st.builds(grant, targets, grantees),
    st.builds(revoke, targets, grantees),
)


# Which events?


@pytest.mark.parametrize(
    ("state", "command", "events"),
    [
        (INITIAL, ask("exams"), [asked("exams")]),
        (INITIAL, ask("all"), [asked(one) for one in RECORD_TYPES]),
        (having("exams"), ask("conditions"), [asked("conditions")]),
        (
            having("exams", "conditions"),
            ask("all"),
            [asked("consultations"), asked("er_visits")],
        ),
        (INITIAL, grant("exams"), [granted("exams")]),
        (INITIAL, grant("all"), [granted(one) for one in RECORD_TYPES]),
        (
            having("exams", "er_visits"),
            grant("all"),
            [granted("consultations"), granted("conditions")],
        ),
        (having("exams"), revoke("exams"), [revoked("exams")]),
        (
            having("er_visits", "exams"),
            revoke("all"),
            [revoked("exams"), revoked("er_visits")],
        ),
    ],
)
def test_a_command_causes_an_event_for_each_record_type_it_changes(
    state: Patient, command: ConsentCommand, events: list[ConsentEvent]
) -> None:
    assert decide(state, command, NOW) == events


# Which refusal?


@pytest.mark.parametrize(
    ("state", "command", "refusal", "message"),
    [
        (
            having("exams"),
            ask("exams"),
            ConsentAlreadyGranted,
            "doctor d-1 already has consent to exams",
        ),
        (
            having("exams"),
            grant("exams"),
            ConsentAlreadyGranted,
            "doctor d-1 already has consent to exams",
        ),
        (
            having(*RECORD_TYPES),
            grant("all"),
            ConsentAlreadyGranted,
            "doctor d-1 already has consent to all records",
        ),
        (
            having(*RECORD_TYPES),
            ask("all"),
            ConsentAlreadyGranted,
            "doctor d-1 already has consent to all records",
        ),
        (
            INITIAL,
            revoke("exams"),
            ConsentNotGranted,
            "doctor d-1 has no consent to exams",
        ),
        (
            having("conditions"),
            revoke("exams"),
            ConsentNotGranted,
            "doctor d-1 has no consent to exams",
        ),
        (
            INITIAL,
            revoke("all"),
            ConsentNotGranted,
            "doctor d-1 has no consent to all records",
        ),
    ],
)
def test_a_command_with_nothing_to_change_is_refused_by_the_state_in_its_way(
    state: Patient, command: ConsentCommand, refusal: type[Rejected], message: str
) -> None:
    with pytest.raises(refusal, match=f"^{message}$"):
        decide(state, command, NOW)


# When nothing?


def test_asking_again_while_a_request_is_pending_is_recorded_as_a_reminder() -> None:
    after = fold(INITIAL, [asked("exams")])
    assert decide(after, ask("exams"), NOW) == [asked("exams")]


def test_asking_never_changes_what_is_granted() -> None:
    assert fold(having("exams"), [asked("conditions")]).granted == having("exams").granted


def drowned() -> Patient:
    """Make a patient of whom as many ask as may."""
    asking = [ask("exams", Grantee("nurse", f"n-{number}")) for number in range(MOST_REQUESTS)]
    return fold(INITIAL, [event for one in asking for event in decide(INITIAL, one, NOW)])


def test_one_request_too_many_is_refused_and_tells_nothing_of_the_others() -> None:
    with pytest.raises(TooManyRequests, match="wait for this patient's answer already"):
        decide(drowned(), ask("all"), NOW)


def test_whoever_waits_may_remind_and_ask_for_more_however_many_wait() -> None:
    waiting = Grantee("nurse", "n-0")
    assert len(decide(drowned(), ask("all", waiting), NOW)) == len(RECORD_TYPES)


def test_a_patient_of_whom_too_many_ask_may_still_grant_and_revoke_and_an_answer_makes_room() -> (
    None
):
    state = drowned()
    granting = decide(state, grant("exams", Grantee("nurse", "n-1")), NOW)
    state = fold(state, granting)
    assert len(state.requested) == MOST_REQUESTS - 1
    assert decide(state, ask("exams"), NOW) == [asked("exams")]
    assert decide(state, revoke("exams", Grantee("nurse", "n-1")), NOW)


def test_what_is_refused_because_it_is_granted_is_so_however_many_wait() -> None:
    state = fold(drowned(), [granted("exams")])
    with pytest.raises(ConsentAlreadyGranted):
        decide(state, ask("exams"), NOW)


def test_granting_to_one_grantee_grants_nothing_to_another_of_the_same_id() -> None:
    assert decide(having("exams"), grant("exams", Grantee("nurse", "d-1")), NOW)


# The aggregate and the simplest model


class Model:
    """What is granted, as a set of pairs; requests as another."""

    def __init__(self) -> None:
        self.granted: set[tuple[Grantee, RecordType]] = set()
        self.requested: set[tuple[Grantee, RecordType]] = set()

    def answer(self, command: ConsentCommand) -> list[RecordType]:
        """Return the record types that the command changes; empty: refused."""
        held = {one for who, one in self.granted if who == command.grantee}
        wanted = record_types(command.target)
        match command:
            case RevokeConsent():
                changed = [one for one in wanted if one in held]
                self.granted -= {(command.grantee, one) for one in changed}
            case GrantConsent():
                changed = [one for one in wanted if one not in held]
                self.granted |= {(command.grantee, one) for one in changed}
                self.requested -= {(command.grantee, one) for one in changed}
            case AskConsent():
                changed = [one for one in wanted if one not in held]
                self.requested |= {(command.grantee, one) for one in changed}
        return changed


def answer(state: Patient, command: ConsentCommand) -> list[ConsentEvent]:
    try:
        return decide(state, command, NOW)
    except Rejected:
        return []


@given(st.lists(commands, max_size=40))
def test_the_aggregate_decides_as_the_simplest_model_does(history: list[ConsentCommand]) -> None:
    state, model = INITIAL, Model()
    for command in history:
        events = answer(state, command)
        assert [event.target for event in events] == model.answer(command)
        assert all(event.grantee == command.grantee for event in events)
        state = fold(state, events)
        assert pairs(state.granted) == model.granted
        assert pairs(state.requested) == model.requested


def pairs(types_of: Mapping[Grantee, frozenset[RecordType]]) -> set[tuple[Grantee, RecordType]]:
    return {(who, one) for who, types in types_of.items() for one in types}


@given(st.lists(commands, max_size=40))
def test_what_was_decided_allows_exactly_what_the_queries_answer(
    history: list[ConsentCommand],
) -> None:
    state = INITIAL
    projected: dict[Grantee, consents.Consent] = {}
    for command in history:
        for event in answer(state, command):
            state = evolve(state, event)
            before = projected.get(event.grantee, consents.NOTHING)
            projected[event.grantee] = consents.evolve(before, event)
        for who, consent in projected.items():
            for target in TARGETS:
                allowed = set(record_types(target)) <= state.granted.get(who, NOTHING)
                assert consent.allows(target) == allowed
            assert consent.requested == state.requested.get(who, frozenset())


@given(st.lists(commands, max_size=20))
def test_applying_an_event_twice_equals_applying_it_once(history: list[ConsentCommand]) -> None:
    state, consent = INITIAL, consents.NOTHING
    for command in history:
        for event in answer(state, command):
            state = evolve(state, event)
            assert evolve(state, event) == state
            consent = consents.evolve(consent, event)
            assert consents.evolve(consent, event) == consent


@given(st.lists(commands, max_size=20), commands)
def test_a_grant_or_a_revoke_repeated_is_refused_and_an_ask_repeated_asks_the_same(
    history: list[ConsentCommand], command: ConsentCommand
) -> None:
    state = INITIAL
    for earlier in history:
        state = fold(state, answer(state, earlier))
    once = answer(state, command)
    twice = answer(fold(state, once), command)
    assert twice == (once if isinstance(command, AskConsent) else [])


def test_a_grant_answers_the_request_and_a_revoke_asks_nothing_new() -> None:
    after_asking = consents.evolve(consents.NOTHING, asked("exams"))
    assert after_asking == consents.Consent(requested=frozenset({"exams"}))
    after_granting = consents.evolve(after_asking, granted("exams"))
    assert after_granting == consents.Consent(permissions=frozenset({"exams"}))
    assert consents.evolve(after_granting, revoked("exams")) == consents.NOTHING
