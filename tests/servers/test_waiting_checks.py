"""Many questions that wait: their versions are looked up, and each is asked once."""

from collections.abc import AsyncIterator
from typing import Final

import pytest

from projection_service.answers.version_waits import MOST_PATIENTS
from shared.postgres.statements import statement
from tests.servers.test_waiting_queries import PATIENCE, VERSIONS, Responder, answering
from tests.support.amqp import Client, Json
from tests.support.deployment import Deployment

PRESENT: Final = statement("projection_service", "check_consents")
PAST: Final = statement("projection_service", "checked_consents")
ACTOR: Final = {"entity_name": "doctor", "entity_id": "d-1"}
AT: Final = "2026-01-01T00:00:00Z"


@pytest.fixture
def endless_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give nobody up for the time: what a slow machine takes is no matter then."""
    monkeypatch.setattr(PATIENCE, 600.0)


@pytest.fixture
async def responder(deployment: Deployment) -> AsyncIterator[Responder]:
    async with answering(deployment) as made:
        yield made


async def ask(client: Client, questions: list[Json]) -> str:
    body = {"questions": questions}
    return await client.send("CheckConsents", body, exchange="consent.queries", key="CheckConsents")


def question(patient: str, **more: object) -> Json:
    return {"patient_id": patient, "actors": [ACTOR], **more}


async def test_one_statement_asks_the_present_and_one_the_past_however_many_the_questions(
    responder: Responder, client: Client
) -> None:
    asked = [question(f"p-{number}", **({"at": AT} if number % 2 else {})) for number in range(500)]
    answers = (await client.reply(await ask(client, asked)))["answers"]
    assert len(answers) == 500
    assert (responder.database.asked[PRESENT], responder.database.asked[PAST]) == (1, 1)
    assert responder.database.asked[VERSIONS] == 0


@pytest.mark.usefixtures("endless_waits")
async def test_while_some_patients_are_waited_for_only_versions_are_looked_up(
    responder: Responder, client: Client
) -> None:
    waiting = [question(f"p-{number}", min_version=1) for number in range(50)]
    sent = await ask(client, [*waiting, question("p-other")])
    await responder.looked_up(times=5)
    assert responder.database.asked[PRESENT] == 0
    for number in range(50):
        await responder.project(f"p-{number}", 1)
    answers = (await client.reply(sent))["answers"]
    assert {answer["status"] for answer in answers} == {"ok"}
    assert responder.database.asked[PRESENT] == 1


async def test_what_comes_too_early_is_said_of_that_question_alone_after_one_wait(
    responder: Responder, client: Client
) -> None:
    await responder.project("p-there", 3)
    sent = await ask(
        client, [question("p-there", min_version=3), question("p-never", min_version=1)]
    )
    there, never = (await client.reply(sent))["answers"]
    assert (there["status"], there["version"]) == ("ok", 3)
    assert (never["error"], never["version"]) == ("not_yet_projected", 0)
    assert responder.database.asked[PRESENT] == 1


async def test_a_moment_that_is_not_known_any_more_is_said_of_that_question_alone(
    responder: Responder, client: Client
) -> None:
    await responder.database.execute(
        "INSERT INTO history_horizon (known_since) VALUES ('2026-06-01T00:00:00Z')"
    )
    asked = [question("p-1"), question("p-1", at=AT), question("p-1", at="2026-06-01T00:00:00Z")]
    now, gone, known = (await client.reply(await ask(client, asked)))["answers"]
    assert (now["status"], gone["error"], known["status"]) == ("ok", "validation_error", "ok")
    assert gone["details"][0]["field"] == "at"
    assert "known since 2026-06-01" in gone["details"][0]["message"]


async def test_what_was_granted_before_there_was_a_history_is_a_yes_that_names_no_consent(
    responder: Responder, client: Client
) -> None:
    await responder.database.execute(
        """
        INSERT INTO patient_consent (patient_id, entity_name, entity_id, permissions, requested)
        VALUES ('p-old', 'doctor', 'd-1', ARRAY['exams'], ARRAY[]::text[])
        """
    )
    await responder.database.execute(
        "INSERT INTO history_horizon (known_since) VALUES ('infinity')"
    )
    targets = ("exams", "conditions", "all")
    asked = [question(patient, permission=t) for patient in ("p-old", "p-new") for t in targets]
    answers = (await client.reply(await ask(client, asked)))["answers"]
    assert [answer["granted"] for answer in answers] == [["exams"], [], ["exams"], [], [], []]
    assert [answer["basis"] for answer in answers] == [[]] * 6


@pytest.mark.usefixtures("endless_waits")
async def test_who_waits_for_very_many_patients_gives_way_to_who_waits_for_one(
    responder: Responder, client: Client
) -> None:
    honest = await client.send(
        "HasConsent",
        {"patient_id": "p-honest", "min_version": 1, **ACTOR},
        exchange="consent.queries",
        key="HasConsent",
    )
    await responder.looked_up(times=1)
    crowd = [
        await ask(
            client, [question(f"p-{turn}-{number}", min_version=10**9) for number in range(500)]
        )
        for turn in range(MOST_PATIENTS // 500 + 2)
    ]
    early = await client.reply(crowd[-1])
    assert {answer["error"] for answer in early["answers"]} == {"not_yet_projected"}
    await responder.project("p-honest", 1)
    assert (await client.reply(honest))["status"] == "ok"
