"""What the contract promises a client of any language, beyond the main path: odd but good input."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4
from zlib import crc32

import pytest

from tests.sandbox import Sandbox
from tests.support.amqp import Client, Json, body_of
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.standing import all_settled, assert_unharmed, standing_deployment

VHOST: Final = "contract"


@pytest.fixture(scope="module")
def deployment(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, VHOST, migrated) as made:
        yield made


@pytest.fixture(autouse=True)
def workers_stand(deployment: Deployment) -> Iterator[None]:
    yield
    assert_unharmed(deployment)


def new_patient() -> str:
    return f"p-{uuid4()}"


def patient_in(partition: int, partitions: int) -> str:
    """Make up a patient of a partition."""
    return next(
        patient
        for patient in iter(new_patient, "")
        if crc32(patient.encode()) % partitions == partition
    )


# Commands that are odd, but good.


@pytest.mark.parametrize(
    "patient_id",
    [
        "x" * 128,
        "😀" * 128,
        "a b",
        "ü",
        "p.#.*",
        "'; DROP TABLE events; --",
        "%s{0}",
        "患者",
        "0",
    ],
)
async def test_any_visible_text_of_128_code_points_is_an_id(
    client: Client, patient_id: str
) -> None:
    accepted = await client.command("GrantConsent", patient_id)
    assert (accepted["status"], accepted["patient_id"]) == ("accepted", patient_id)
    assert accepted["partition"] == crc32(patient_id.encode()) % client.partitions
    held = await client.query("ListConsents", patient_id=patient_id, min_version=1)
    assert held["consents"] == [
        {"entity_name": "doctor", "entity_id": "d-1", "permissions": ["exams"], "requested": []}
    ]


ODD: Final[dict[str, Json]] = {
    "no content type": {"content_type": None},
    "a content type with a parameter": {"content_type": "Application/JSON; charset=utf-8"},
    "a trace context that is none": {"headers": {"traceparent": "00-0-0-00", "tracestate": "\n"}},
    "a message id in capitals": {"message_id": str(uuid4()).upper()},
    "a priority": {"priority": 255},
    "an expiration": {"expiration": 60},
}


@pytest.mark.parametrize("odd", ODD)
async def test_odd_properties_make_no_command_bad(client: Client, odd: str) -> None:
    accepted = await client.command("GrantConsent", new_patient(), **ODD[odd])
    assert accepted["status"] == "accepted"


async def test_white_space_around_the_json_makes_no_command_bad(client: Client) -> None:
    patient = new_patient()
    body = b" " * 65_000 + json.dumps(body_of("GrantConsent", patient)).encode() + b"\r\n\t"
    key = client.key("GrantConsent", patient)
    accepted = await client.reply(await client.send("GrantConsent", body, key=key))
    assert accepted["status"] == "accepted"


async def test_a_sender_may_be_answered_through_direct_reply_to(client: Client) -> None:
    answers: asyncio.Queue[Any] = asyncio.Queue()
    direct = await client.channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
    await direct.consume(answers.put, no_ack=True)
    sent = await client.send(
        "GrantConsent", body_of("GrantConsent", new_patient()), reply_to="amq.rabbitmq.reply-to"
    )
    async with asyncio.timeout(30):
        answer = await answers.get()
    assert answer.correlation_id == sent
    assert json.loads(answer.body)["status"] == "accepted"


async def test_the_rules_refuse_and_nothing_is_set_aside(client: Client) -> None:
    patient = new_patient()
    not_granted = await client.command("RevokeConsent", patient)
    await client.command("GrantConsent", patient)
    granted = await client.command("GrantConsent", patient)
    assert (not_granted["error"], granted["error"]) == (
        "consent_not_granted",
        "consent_already_granted",
    )
    assert not_granted["details"] == granted["details"] == []
    assert await client.dead_letters() == []


# One outcome per command id.


async def test_the_same_command_twenty_times_has_one_outcome(client: Client) -> None:
    patient, message_id = new_patient(), str(uuid4())
    body = body_of("GrantConsent", patient, target="all")
    sent = await asyncio.gather(
        *(client.send("GrantConsent", body, message_id=message_id) for _ in range(20))
    )
    first, *others = [await client.reply(one) for one in sent]
    assert (first["status"], first["version"]) == ("accepted", 4)
    assert others == [first] * 19
    revoked = await client.command("RevokeConsent", patient, target="all")
    assert revoked["version"] == 8
    assert await client.reply(await client.send("GrantConsent", body, message_id=message_id)) == (
        first
    )


async def test_the_same_content_in_other_words_has_the_same_outcome(client: Client) -> None:
    patient, message_id = new_patient(), str(uuid4())
    first = await client.command("GrantConsent", patient, message_id=message_id)
    fields = dict(reversed(body_of("GrantConsent", patient).items()))
    escaped = json.dumps(fields, indent=3).replace("exams", "\\u0065xams").encode()
    key = client.key("GrantConsent", patient)
    sent = await client.send("GrantConsent", escaped, key=key, message_id=message_id.upper())
    assert await client.reply(sent) == first


@pytest.mark.parametrize("change", [{"target": "all"}, {"id_": "d-2"}, {"entity": "nurse"}])
async def test_the_same_id_with_other_content_is_a_conflict(
    client: Client, change: dict[str, str]
) -> None:
    patient, message_id = new_patient(), str(uuid4())
    first = await client.command("GrantConsent", patient, message_id=message_id)
    other = await client.command("GrantConsent", patient, message_id=message_id, **change)
    again = await client.command("GrantConsent", patient, message_id=message_id)
    assert (other["status"], other["error"]) == ("rejected", "command_id_conflict")
    assert other["command_id"] == message_id
    assert again == first
    assert await client.dead_letters() == []


async def test_the_same_id_for_another_verb_is_a_conflict(client: Client) -> None:
    patient, message_id = new_patient(), str(uuid4())
    await client.command("GrantConsent", patient, message_id=message_id)
    other = await client.command("AskConsent", patient, message_id=message_id)
    assert other["error"] == "command_id_conflict"


async def test_of_one_id_for_many_patients_at_once_one_is_accepted(client: Client) -> None:
    message_id = str(uuid4())
    patients = [patient_in(number % client.partitions, client.partitions) for number in range(12)]
    sent = await asyncio.gather(
        *(
            client.send("GrantConsent", body_of("GrantConsent", one), message_id=message_id)
            for one in patients
        )
    )
    replies = [await client.reply(one) for one in sent]
    assert [reply.get("error") for reply in replies].count(None) == 1
    assert [reply.get("error") for reply in replies].count("command_id_conflict") == 11


async def test_a_refused_command_id_may_be_used_again(client: Client) -> None:
    patient, message_id = new_patient(), str(uuid4())
    bad = await client.send(
        "GrantConsent", b"no", key=client.key("GrantConsent", patient), message_id=message_id
    )
    assert (await client.reply(bad))["error"] == "validation_error"
    assert len(await client.dead_letters()) == 1
    good = await client.command("GrantConsent", patient, message_id=message_id)
    assert good["status"] == "accepted"


# Queries.


def has(**changes: object) -> Json:
    return {"patient_id": "p", "entity_name": "doctor", "entity_id": "d-1"} | changes


BAD_QUERIES: Final[dict[str, tuple[str, Json | bytes, str]]] = {
    "an empty body": ("ListConsents", b"", "body"),
    "garbage": ("HasConsent", b"\xff" * 1000, "body"),
    "deep nesting": ("ReadEvents", b"[" * 60_000, "body"),
    "an array": ("ReadEvents", b"[]", "body"),
    "an unknown field": ("ListConsents", {"patient_id": "p", "surprise": 1}, "surprise"),
    "no patient": ("ListConsents", {}, "patient_id"),
    "NUL in an id": ("ListConsents", {"patient_id": "p\x00"}, "patient_id"),
    "a lone surrogate": ("ListConsents", b'{"patient_id":"\\udfff"}', "body"),
    "an unknown permission": ("HasConsent", has(permission="x-rays"), "permission"),
    "an unknown entity": ("HasConsent", has(entity_name="robot"), "entity_name"),
    "a negative version": ("HasConsent", has(min_version=-1), "min_version"),
    "a version in text": ("HasConsent", has(min_version="1"), "min_version"),
    "a limit of 0": ("ReadEvents", {"partition": 0, "limit": 0}, "limit"),
    "a limit of 501": ("ReadEvents", {"partition": 0, "limit": 501}, "limit"),
    "no partition": ("ReadEvents", {}, "partition"),
    "a negative partition": ("ReadEvents", {"partition": -1}, "partition"),
    "a partition that is not there": ("ReadEvents", {"partition": 4}, "partition"),
    "a huge partition": ("ReadEvents", {"partition": 10**30}, "partition"),
    "a negative position": ("ReadEvents", {"partition": 0, "after_position": -1}, "after_position"),
    "a huge position": ("ReadEvents", {"partition": 0, "after_position": 2**63}, "after_position"),
    "an unknown query": ("ListEverything", {}, "type"),
    "an empty query": ("", {}, "type"),
    "a query of 250 bytes": ("é" * 125, {}, "type"),
}


@pytest.mark.parametrize("bad", BAD_QUERIES)
async def test_a_bad_query_is_told_what_is_wrong(client: Client, bad: str) -> None:
    type_, body, field = BAD_QUERIES[bad]
    sent = await client.send(type_, body, exchange="consent.queries", key=type_)
    answer = await client.reply(sent)
    assert (answer["status"], answer["error"]) == ("error", "validation_error")
    assert field in [detail["field"] for detail in answer["details"]]


async def test_a_patient_of_another_partition_is_told_where_to_look(client: Client) -> None:
    answer = await client.query(
        "ReadEvents", partition=0, patient_id=patient_in(1, client.partitions)
    )
    assert answer["details"] == [{"field": "patient_id", "message": "is in partition 1"}]


@pytest.mark.parametrize("queue", ["consent.queries", "consent.log"])
async def test_a_query_straight_to_a_queue_is_told_the_right_way(
    client: Client, queue: str
) -> None:
    sent = await client.send("ListConsents", {"patient_id": "p"}, exchange="", key=queue)
    answer = await client.reply(sent)
    assert [detail["field"] for detail in answer["details"]] == ["type"]


async def test_a_query_that_wants_no_answer_harms_nobody(client: Client) -> None:
    for type_ in ("ListConsents", "HasConsent", "ReadEvents", "None"):
        await client.send(type_, b"no", exchange="consent.queries", key=type_, reply_to=None)
    assert (await client.query("ListConsents", patient_id="p"))["status"] == "ok"
    assert (await client.query("ReadEvents", partition=0))["status"] == "ok"


async def test_nobody_waits_for_ever_for_a_version_that_does_not_come(client: Client) -> None:
    patient = new_patient()
    await client.command("GrantConsent", patient)
    await client.query("ListConsents", patient_id=patient, min_version=1)
    late = await client.query_once("ListConsents", patient_id=patient, min_version=10**30)
    assert (late["status"], late["error"], late["version"]) == ("error", "not_yet_projected", 1)


# What is no event, in the queues of the projection.


def forged(partition: int, position: int, subject: str, **changes: object) -> Json:
    """Write an event that never was."""
    data = {"patient_id": subject, "to_entity": "doctor", "to_id": "d-1", "target": "exams"}
    return {
        "specversion": "1.0", "id": str(uuid4()), "source": "consent/command-service",
        "type": "ConsentGranted", "subject": subject, "time": "2026-01-01T00:00:00Z",
        "schemaversion": 1, "partition": partition, "position": position, "streamversion": 1,
        "correlationid": "c", "causationid": str(uuid4()), "data": data,
    } | changes  # fmt: skip


async def head_of(client: Client, partition: int) -> int:
    return int((await client.query("ReadEvents", partition=partition))["head"])


async def publish_event(client: Client, partition: int, body: Json | bytes) -> None:
    await client.send(
        "ConsentGranted", body, exchange="", key=f"consent.projection.{partition}", reply_to=None
    )


NO_EVENTS: Final[dict[str, tuple[Json | bytes, str]]] = {
    "garbage": (b"\xff" * 100, "body"),
    "an empty body": (b"", "body"),
    "another document": ({"hello": "world"}, "id"),
    "deep nesting": (b'{"data":' + b"[" * 16_000, "body"),
    "16 KiB and a byte": (b" " * 16_385, "body"),
    "another queue's event": (forged(1, 1, "p"), "partition"),
    "position 0": (forged(0, 0, "p"), "position"),
    "a position that no log has": (forged(0, 10**30, "p"), "position"),
    "a position beyond the end": (forged(0, 10**6, "p"), "position"),
    "a version that no patient has": (forged(0, 10**6, "p", streamversion=10**30), "streamversion"),
    "NUL in its type": (forged(0, 10**6, "p", type="Consent\x00"), "type"),
    "NUL in its subject": (forged(0, 10**6, "p\x00"), "subject"),
}


@pytest.mark.parametrize("wrong", NO_EVENTS)
async def test_what_is_no_event_is_set_aside_and_later_events_are_applied(
    client: Client, wrong: str
) -> None:
    body, field = NO_EVENTS[wrong]
    await publish_event(client, 0, body)

    (kept,) = await eventually(client.dead_letters)

    assert kept.headers["x-consent-error"] == "not_an_event"
    assert field in [
        one.split(":")[0] for one in str(kept.headers["x-consent-details"]).split("; ")
    ]
    whole = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert whole.startswith(kept.body)
    assert len(kept.body) >= min(len(whole), 8_192)
    patient = patient_in(0, client.partitions)
    await client.command("GrantConsent", patient)
    held = await client.query("ListConsents", patient_id=patient, min_version=1)
    assert held["version"] == 1


async def test_an_event_that_was_applied_before_changes_nothing(client: Client) -> None:
    patient = patient_in(0, client.partitions)
    await client.command("GrantConsent", patient)
    await client.query("ListConsents", patient_id=patient, min_version=1)
    await publish_event(client, 0, forged(0, await head_of(client, 0), patient))
    await client.command("RevokeConsent", patient)
    held = await client.query("ListConsents", patient_id=patient, min_version=2)
    assert (held["version"], held["consents"]) == (2, [])


UNAPPLICABLE: Final[dict[str, Json]] = {
    "an unknown type": {"type": "ConsentSold"},
    "a later schema": {"schemaversion": 3},
    "no data": {"data": {}},
    "data nested 150 times": {"data": json.loads('{"a":' * 150 + "1" + "}" * 150)},
    "an endless number": {"data": {"a": float("inf")}},
    "NUL in its data": {"data": {"a": "\x00"}},
}


@pytest.mark.parametrize("what", UNAPPLICABLE)
async def test_an_event_that_cannot_be_applied_stops_only_its_patient(
    client: Client, deployment: Deployment, sandbox: Sandbox, what: str
) -> None:
    partition = 2
    parked, other = (patient_in(partition, client.partitions) for _ in range(2))
    await client.command("AskConsent", patient_in(partition, client.partitions))
    head = await head_of(client, partition)
    checkpoint = await eventually(lambda: _reached(sandbox, partition, head))
    bad = forged(partition, checkpoint + 1, parked, **UNAPPLICABLE[what])
    await publish_event(client, partition, bad)
    await eventually(lambda: _reached(sandbox, partition, checkpoint + 1))

    # The forged event took the place of a real one; the patients after that are what matters.
    await client.command("AskConsent", patient_in(partition, client.partitions))
    await client.command("GrantConsent", parked)
    await client.command("GrantConsent", other)

    held = await client.query("ListConsents", patient_id=other, min_version=1)
    assert held["version"] == 1
    stopped = await client.query("ListConsents", patient_id=parked)
    assert (stopped["version"], stopped["consents"]) == (0, [])
    rows = sandbox.read_model_server.fetch(
        f"SELECT reason FROM parked_events WHERE patient_id = '{parked}' ORDER BY position",  # noqa: S608 - ours
        VHOST,
    )
    assert len(rows) == 2
    assert rows[1]["reason"] == f"behind position {checkpoint + 1}, which is parked"


async def _reached(sandbox: Sandbox, partition: int, position: int) -> int:
    """Return the partition's checkpoint, once it is there."""
    (row,) = sandbox.read_model_server.fetch(
        f"SELECT position FROM checkpoints WHERE partition = {partition}",  # noqa: S608 - ours
        VHOST,
    )
    return int(row["position"]) if row["position"] >= position else 0


async def test_after_all_of_it_nothing_is_left_unsettled(client: Client, sandbox: Sandbox) -> None:
    good = await client.command("GrantConsent", new_patient())
    assert good["status"] == "accepted"
    await eventually(lambda: all_settled(sandbox, VHOST), every=0.2)


async def test_the_same_command_has_the_same_outcome_after_a_restart(
    client: Client, deployment: Deployment
) -> None:
    patient, message_id = new_patient(), str(uuid4())
    first = await client.command("GrantConsent", patient, message_id=message_id)
    refused_id = str(uuid4())
    refused = await client.command("GrantConsent", patient, message_id=refused_id)
    for worker in list(deployment.workers):
        assert worker.stop() == 0
    deployment.workers.clear()
    deployment.start_both()

    assert await client.command("GrantConsent", patient, message_id=message_id) == first
    assert await client.command("GrantConsent", patient, message_id=refused_id) == refused
    other = await client.command("GrantConsent", patient, message_id=message_id, target="all")
    assert other["error"] == "command_id_conflict"
