"""A request ends: it is granted, denied by the patient, or withdrawn by who asked."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final
from uuid import uuid4

import pytest

from shared.client.client import ConsentClient
from shared.messages.replies import CommandAccepted, CommandRejected
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, body_of, open_client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.standing import assert_unharmed, standing_deployment

ALL: Final = ["exams", "consultations", "conditions", "er_visits"]
ENDS: Final = {"DenyConsent": "ConsentDenied", "WithdrawRequest": "RequestWithdrawn"}


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, "requests_that_end", migrated) as made:
        yield made
        assert_unharmed(made)


@pytest.fixture
async def client(running: Deployment) -> AsyncIterator[Client]:
    async with open_client(running.rabbitmq_url, PARTITIONS) as connected:
        yield connected


@pytest.fixture
def patient_id() -> str:
    return f"p-{uuid4()}"


async def done(client: Client, patient_id: str, *steps: tuple[str, str]) -> list[Any]:
    """Let a doctor's and the patient's commands happen; return their replies."""
    return [await client.command(type_, patient_id, target=target) for type_, target in steps]


async def requested(client: Client, patient_id: str, version: int) -> Any:  # noqa: ANN401
    """Say what the doctor still asks for."""
    answer = await client.query("ListConsents", patient_id=patient_id, min_version=version)
    return [entry["requested"] for entry in answer["consents"]]


def touched(reply: Any) -> list[tuple[str, str]]:  # noqa: ANN401
    assert reply["status"] == "accepted", reply
    return [(event["type"], event["target"]) for event in reply["events"]]


@pytest.mark.parametrize("end", ENDS)
async def test_a_request_that_is_denied_or_withdrawn_waits_no_longer(
    client: Client, patient_id: str, end: str
) -> None:
    await done(client, patient_id, ("AskConsent", "exams"), ("AskConsent", "exams"))
    (ended,) = await done(client, patient_id, (end, "exams"))
    assert touched(ended) == [(ENDS[end], "exams")]
    assert await requested(client, patient_id, ended["version"]) == []


@pytest.mark.parametrize("end", ENDS)
async def test_all_ends_what_is_asked_for_and_nothing_else(
    client: Client, patient_id: str, end: str
) -> None:
    steps = (("AskConsent", "exams"), ("AskConsent", "er_visits"), ("GrantConsent", "conditions"))
    await done(client, patient_id, *steps)
    (ended,) = await done(client, patient_id, (end, "all"))
    assert touched(ended) == [(ENDS[end], "exams"), (ENDS[end], "er_visits")]
    assert await requested(client, patient_id, ended["version"]) == [[]]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "before",
    [
        (),
        (("AskConsent", "conditions"),),
        (("AskConsent", "exams"), ("GrantConsent", "exams")),
        (("AskConsent", "exams"), ("DenyConsent", "exams")),
        (("AskConsent", "exams"), ("WithdrawRequest", "exams")),
        (("GrantConsent", "exams"),),
    ],
    ids=["never", "another record type", "granted", "denied", "withdrawn", "never, but granted"],
)
async def test_what_is_not_asked_for_is_neither_denied_nor_withdrawn(
    client: Client, patient_id: str, end: str, before: tuple[tuple[str, str], ...]
) -> None:
    *_, refused = await done(client, patient_id, *before, (end, "exams"))
    assert (refused["status"], refused["error"]) == ("rejected", "consent_not_requested")
    assert refused["message"] == "doctor d-1 does not ask for consent to exams"


async def test_a_denial_takes_nothing_that_is_granted_and_who_was_denied_may_ask_again(
    client: Client, patient_id: str
) -> None:
    steps = (("GrantConsent", "exams"), ("AskConsent", "all"), ("DenyConsent", "all"))
    *_, denied = await done(client, patient_id, *steps)
    assert [target for _, target in touched(denied)] == ALL[1:]
    held = await client.query(
        "HasConsent",
        patient_id=patient_id,
        entity_name="doctor",
        entity_id="d-1",
        permission="exams",
        min_version=denied["version"],
    )
    assert held["has_consent"] is True
    (again,) = await done(client, patient_id, ("AskConsent", "all"))
    assert await requested(client, patient_id, again["version"]) == [sorted(ALL[1:])]


async def test_a_denial_sent_again_has_the_outcome_that_it_had(
    client: Client, patient_id: str
) -> None:
    await done(client, patient_id, ("AskConsent", "exams"))
    body, id_ = body_of("DenyConsent", patient_id), str(uuid4())
    first = await client.reply(await client.send("DenyConsent", body, message_id=id_))
    await done(client, patient_id, ("AskConsent", "exams"))
    again = await client.reply(await client.send("DenyConsent", body, message_id=id_))
    assert (first, first["status"]) == (again, "accepted")


async def test_the_events_say_who_and_what_under_words_of_their_own(
    client: Client, patient_id: str
) -> None:
    seen: list[tuple[str, dict[str, str]]] = []
    for word in ("denied", "withdrawn"):
        await client.subscribe(
            f"{word}.doctor.exams.*",
            lambda message: seen.append(
                (str(message.routing_key).split(".")[0], json.loads(message.body)["data"])
            ),
        )
    for end in ENDS:
        await done(client, patient_id, ("AskConsent", "exams"), (end, "exams"))
    number = int(client.key("AskConsent", patient_id).split(".")[1])
    page = await client.query("ReadEvents", partition=number, patient_id=patient_id)
    in_log = [event["data"] for event in page["events"] if event["type"] in ENDS.values()]
    assert in_log == [
        {"patient_id": patient_id, "to_entity": "doctor", "to_id": "d-1", "target": "exams"},
        {"patient_id": patient_id, "by_entity": "doctor", "by_id": "d-1", "target": "exams"},
    ]

    async def both_seen() -> bool:
        return sorted(seen, key=lambda one: one[0]) == [
            ("denied", in_log[0]),
            ("withdrawn", in_log[1]),
        ]

    await eventually(both_seen)


async def test_the_client_in_python_denies_and_withdraws(
    running: Deployment, patient_id: str
) -> None:
    async with ConsentClient.connect(running.rabbitmq_url, partitions=PARTITIONS) as client:
        await client.ask(patient_id, "nurse", "n-1", "exams")
        denied = await client.deny(patient_id, "nurse", "n-1", "exams")
        await client.ask(patient_id, "nurse", "n-1", "all")
        withdrawn = await client.withdraw(patient_id, "nurse", "n-1", "all")
        refused = await client.deny(patient_id, "nurse", "n-1", "all")
    assert isinstance(denied, CommandAccepted)
    assert [event.type for event in denied.events] == ["ConsentDenied"]
    assert isinstance(withdrawn, CommandAccepted)
    assert [event.type for event in withdrawn.events] == ["RequestWithdrawn"] * 4
    assert isinstance(refused, CommandRejected)
    assert refused.error == "consent_not_requested"
