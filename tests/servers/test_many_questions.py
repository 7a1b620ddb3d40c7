"""Many questions in one message: each answered by itself, with what a yes stands on."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from shared.values.oversized import LARGEST_CHECKS
from tests.sandbox import Sandbox
from tests.support.amqp import MOST_ASKED, Client, Json
from tests.support.deployment import Deployment
from tests.support.standing import assert_unharmed, standing_deployment

DOCTOR: Final = {"entity_name": "doctor", "entity_id": "d-1"}
NURSE: Final = {"entity_name": "nurse", "entity_id": "n-1"}
LONG_ID: Final = "\N{GRINNING FACE}" * 128


@pytest.fixture(scope="module")
def deployment(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, "questions", migrated) as made:
        yield made


@pytest.fixture(autouse=True)
def workers_stand(deployment: Deployment) -> Iterator[None]:
    yield
    assert_unharmed(deployment)


def question(patient: str, *actors: Json, **more: Any) -> Json:  # noqa: ANN401
    return {"patient_id": patient, "actors": list(actors or (DOCTOR,)), **more}


async def check(client: Client, *questions: Json) -> list[Json]:
    """Ask, and ask again where a slow machine needs longer to project what is asked for."""
    for _ in range(MOST_ASKED):
        answers = await check_once(client, *questions)
        if not any(one.get("error") == "not_yet_projected" for one in answers):
            break
    return answers


async def check_once(client: Client, *questions: Json) -> list[Json]:
    answer = await client.query_once("CheckConsents", questions=list(questions))
    assert answer["status"] == "ok", answer
    answers: list[Json] = answer["answers"]
    return answers


async def grant(client: Client, patient: str, target: str = "exams", **more: str) -> Json:
    outcome = await client.command("GrantConsent", patient, target=target, **more)
    assert outcome["status"] == "accepted", outcome
    return outcome


async def projected(client: Client, patient: str, version: int) -> None:
    answer = await client.query("ListConsents", patient_id=patient, min_version=version)
    assert answer["status"] == "ok"


async def test_a_ward_is_asked_about_at_once_and_answered_in_its_order(client: Client) -> None:
    beds = [f"p-ward-{number}" for number in range(40)]
    for patient in beds[::2]:
        outcome = await grant(client, patient)
        await projected(client, patient, outcome["version"])
    answers = await check(client, *(question(patient, permission="exams") for patient in beds))
    assert [answer["has_consent"] for answer in answers] == [True, False] * 20
    assert {answer["version"] for answer in answers[::2]} == {1}


async def test_a_yes_names_the_consent_that_it_is_given_by(client: Client) -> None:
    first = await grant(client, "p-basis")
    second = await grant(client, "p-basis", "conditions")
    page = await client.query("ReadEvents", partition=first["partition"], patient_id="p-basis")
    (answer,) = await check(client, question("p-basis", NURSE, DOCTOR, min_version=2))
    assert (answer["has_consent"], answer["version"]) == (False, 2)
    assert answer["granted"] == ["exams", "conditions"]
    assert answer["missing"] == ["consultations", "er_visits"]
    assert answer["basis"] == [
        {
            "record_type": event["data"]["target"],
            **DOCTOR,
            "event_id": event["id"],
            "command_id": outcome["command_id"],
            "since": event["time"],
        }
        for event, outcome in zip(page["events"], (first, second), strict=True)
    ]


async def test_a_record_type_is_answered_as_it_is_among_all_whatever_became_of_it(
    client: Client,
) -> None:
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    later = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    steps: list[tuple[str, Json]] = [
        ("AskConsent", {}),
        ("GrantConsent", {"expires_at": soon}),
        ("GrantConsent", {"expires_at": later}),
        ("RevokeConsent", {}),
        ("GrantConsent", {}),
        ("RevokeConsent", {}),
    ]
    seen = []
    for version, (type_, more) in enumerate(steps, 1):
        outcome = await client.command(type_, "p-steps", target="exams", **more)
        assert (outcome["status"], outcome.get("version")) == ("accepted", version), outcome
        one, every = await check(
            client,
            question("p-steps", permission="exams", min_version=version),
            question("p-steps", min_version=version),
        )
        assert (one["granted"], one["basis"]) == (every["granted"], every["basis"])
        seen.append((one["has_consent"], [basis["command_id"] for basis in one["basis"]]))
        assert one["has_consent"] is (type_ == "GrantConsent"), (version, one)
    assert len({ids[0] for has_consent, ids in seen if has_consent}) == 3


async def test_any_of_the_actors_may_hold_the_consent_and_none_of_another_patient(
    client: Client,
) -> None:
    await grant(client, "p-any-1", "exams", entity="nurse", id_="n-1")
    await grant(client, "p-any-1", "conditions", entity="patient", id_="p-9")
    await grant(client, "p-any-2", "all")
    everyone = (DOCTOR, NURSE, {"entity_name": "patient", "entity_id": "p-9"})
    answers = await check(
        client,
        question("p-any-1", *everyone, permission="exams", min_version=2),
        question("p-any-1", *everyone, permission="conditions"),
        question("p-any-1", DOCTOR, permission="exams"),
        question("p-any-2", *everyone, min_version=4),
    )
    assert [answer["has_consent"] for answer in answers] == [True, True, False, True]
    assert [one["entity_name"] for one in answers[0]["basis"]] == ["nurse"]
    assert [one["entity_name"] for one in answers[1]["basis"]] == ["patient"]
    assert {one["entity_id"] for one in answers[3]["basis"]} == {"d-1"}


async def test_a_no_is_the_same_bytes_whatever_its_reason(client: Client) -> None:
    await grant(client, "p-no", id_="d-revoked")
    await client.command("RevokeConsent", "p-no", id_="d-revoked")
    await client.command("AskConsent", "p-no", id_="d-asked")
    await projected(client, "p-no", 3)
    bodies = set()
    for doctor in ("d-never", "d-revoked", "d-asked"):
        actor = {"entity_name": "doctor", "entity_id": doctor}
        asked = {"questions": [question("p-no", actor, permission="exams")]}
        sent = await client.send(
            "CheckConsents", asked, exchange="consent.queries", key="CheckConsents"
        )
        bodies.add((await client.message(sent)).body)
    (body,) = bodies
    assert json.loads(body)["answers"] == [
        {
            "status": "ok",
            "has_consent": False,
            "version": 3,
            "granted": [],
            "missing": ["exams"],
            "basis": [],
        }
    ]


async def test_the_past_and_the_present_are_asked_together(client: Client) -> None:
    first = await grant(client, "p-past")
    await client.command("RevokeConsent", "p-past")
    page = await client.query("ReadEvents", partition=first["partition"], patient_id="p-past")
    granted, revoked = (event["time"] for event in page["events"])
    answers = await check(
        client,
        question("p-past", permission="exams", min_version=2),
        question("p-past", permission="exams", at=granted),
        question("p-past", permission="exams", at=revoked),
        question("p-past", NURSE, permission="exams", at=granted),
        question("p-past", NURSE, DOCTOR, at=granted),
    )
    assert [answer["has_consent"] for answer in answers] == [False, True, False, False, False]
    assert answers[1]["basis"][0]["event_id"] == page["events"][0]["id"]
    assert answers[1]["basis"][0]["since"] == granted
    assert answers[4]["granted"] == ["exams"]
    assert {answer["version"] for answer in answers} == {2}


BAD: Final[dict[str, tuple[Any, str]]] = {
    "no object": (7, "body"),
    "no patient": ({"actors": [DOCTOR]}, "patient_id"),
    "an unknown field": (question("p-1", colour="blue"), "colour"),
    "no actors": ({"patient_id": "p-1", "actors": []}, "actors"),
    "too many actors": (question("p-1", *[DOCTOR] * 21), "actors"),
    "an actor without id": (question("p-1", {"entity_name": "doctor"}), "actors.0.entity_id"),
    "no such permission": (question("p-1", permission="everything"), "permission"),
    "a time without zone": (question("p-1", at="2026-01-01T00:00:00"), "at"),
    "a version below zero": (question("p-1", min_version=-1), "min_version"),
    "very many fields": (question("p-1", **{f"f{number}": 1 for number in range(999)}), "f0"),
    "half of a character": (question("p-\ud800"), "body"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_question_at_fault_has_an_answer_of_its_own(client: Client, bad: str) -> None:
    asked, field = BAD[bad]
    outcome = await grant(client, "p-good", id_=f"d-{bad}")
    actor = {"entity_name": "doctor", "entity_id": f"d-{bad}"}
    good = question("p-good", actor, permission="exams", min_version=outcome["version"])
    before, failed, after = await check(client, good, asked, good)
    assert before == after
    assert before["has_consent"] is True
    assert (failed["status"], failed["error"]) == ("error", "validation_error")
    assert failed["details"][0]["field"] == field


@pytest.mark.parametrize(
    "twice",
    [
        '{"patient_id":"p-1","patient_id":"p-2","actors":[{"entity_name":"doctor","entity_id":"d"}]}',
        '{"patient_id":"p-1","actors":[{"entity_name":"doctor","entity_id":"d","entity_id":"e"}]}',
    ],
)
async def test_a_field_that_is_given_twice_makes_one_question_bad(
    client: Client, twice: str
) -> None:
    good = json.dumps(question('p-"quoted"'))
    body = f'{{"questions":[{good},{twice},{good}]}}'.encode()
    sent = await client.send("CheckConsents", body, exchange="consent.queries", key="CheckConsents")
    answers = (await client.reply(sent))["answers"]
    assert [answer["status"] for answer in answers] == ["ok", "error", "ok"]
    assert answers[1]["details"][0]["message"] == "is given twice: give it once"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"no", "body"),
        (b"[]", "body"),
        (b"{}", "questions"),
        (b'{"questions":[]}', "questions"),
        (json.dumps({"questions": [question("p-1")] * 501}).encode(), "questions"),
        (b'{"questions":[7],"questions":[7]}', "questions"),
        (b'{"questions":[7],"more":1}', "more"),
        (b'{"questions":[' + b" " * LARGEST_CHECKS + b"]}", "body"),
    ],
)
async def test_a_message_that_holds_no_questions_is_refused_as_a_whole(
    client: Client, body: bytes, field: str
) -> None:
    sent = await client.send("CheckConsents", body, exchange="consent.queries", key="CheckConsents")
    refused = await client.reply(sent)
    assert (refused["error"], refused["details"][0]["field"]) == ("validation_error", field)


async def test_five_hundred_questions_with_twenty_actors_each_are_taken(client: Client) -> None:
    outcome = await grant(client, "p-most", id_="d-19")
    actors = [{"entity_name": "doctor", "entity_id": f"d-{number}"} for number in range(20)]
    asked = question("p-most", *actors, permission="exams", min_version=outcome["version"])
    answers = await check(client, *[asked] * 500)
    assert len(answers) == 500
    assert {answer["basis"][0]["entity_id"] for answer in answers} == {"d-19"}


async def test_an_answer_that_is_too_large_says_how_many_questions_fit(client: Client) -> None:
    outcome = await grant(client, LONG_ID, "all", id_=LONG_ID)
    actor = {"entity_name": "doctor", "entity_id": LONG_ID}
    asked = [question(LONG_ID, actor, min_version=outcome["version"])] * 500
    raw = json.dumps({"questions": asked}, ensure_ascii=False).encode()
    assert len(raw) < LARGEST_CHECKS
    sent = await client.send("CheckConsents", raw, exchange="consent.queries", key="CheckConsents")
    refused = await client.reply(sent)
    assert (refused["error"], refused["details"][0]["field"]) == ("validation_error", "questions")
    fit = int(refused["details"][0]["message"].split("the first ")[1].split(" ")[0])
    for count, status in ((fit, "ok"), (fit + 1, "error")):
        raw = json.dumps({"questions": asked[:count]}, ensure_ascii=False).encode()
        sent = await client.send(
            "CheckConsents", raw, exchange="consent.queries", key="CheckConsents"
        )
        message = await client.message(sent)
        assert json.loads(message.body)["status"] == status
        assert len(message.body) <= LARGEST_CHECKS


async def test_a_question_that_comes_too_early_says_so_and_the_others_are_answered(
    client: Client,
) -> None:
    await grant(client, "p-early")
    await projected(client, "p-early", 1)
    late, there = await check_once(
        client, question("p-early", min_version=9), question("p-early", min_version=1)
    )
    assert (late["error"], late["version"]) == ("not_yet_projected", 1)
    assert there["granted"] == ["exams"]


async def test_questions_are_counted_by_their_answers(
    deployment: Deployment, client: Client
) -> None:
    projection = next(one for one in deployment.workers if one.service == "projection_service")
    words = ("yes", "no", "validation_error")

    def counted() -> list[float]:
        return [projection.metric("consent_questions_total", f'answer="{word}"') for word in words]

    outcome = await grant(client, "p-counted")
    await projected(client, "p-counted", outcome["version"])
    before = counted()
    exams = question("p-counted", permission="exams", min_version=outcome["version"])
    await check_once(client, exams, question("p-counted", NURSE), {"patient_id": ""})
    await client.query("HasConsent", patient_id="p-counted", **DOCTOR, permission="exams")
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 1, 1]
