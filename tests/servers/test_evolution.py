"""Events of older and of newer versions: what this version makes of them."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from command_service.domain.decisions import Batch, Decision
from command_service.store.event_store import EventStore
from command_service.store.recorded_event import RecordedEvent
from projection_service.parked import list_parked
from projection_service.projections.changes import Key
from projection_service.projections.fold import fold, read
from shared.messages import events, names
from shared.messages.cloud_event import CloudEvent
from shared.messages.events import EVENTS, UnknownEventError, read_event
from shared.messages.replies import CommandAccepted, CommandRejected
from shared.messages.upcasting import UPCASTERS, Data
from shared.postgres.connection import Pool
from tests.servers.test_event_store import EPOCHS, append, decide, grant, received, revoke
from tests.support import next_version
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment, ServiceName, Worker
from tests.support.eventually import eventually
from tests.support.facts import read_model

GOLDEN: Final = json.loads((Path(__file__).parents[1] / "golden" / "events.json").read_text())
"""A stored row of every type and schema version that was ever written; never changed, only added
to."""


def recorded(row: dict[str, Any], **change: object) -> RecordedEvent:
    row = {**row, **change}
    for column in ("event_id", "causation_id"):
        row[column] = UUID(str(row[column]))
    row["recorded_at"] = datetime.fromisoformat(row["recorded_at"])
    return RecordedEvent(**row)


GRANTED: Final[dict[str, Any]] = next(
    one["row"] for one in GOLDEN if one["row"]["type"] == "ConsentGranted"
)


def stored(version: int, **fields: object) -> RecordedEvent:
    """Make a grant as some version of the software stored it."""
    data = json.loads(GRANTED["data"]) | fields
    return recorded(GRANTED, schema_version=version, data=json.dumps(data))


# Every version ever written


def test_every_version_of_every_event_has_a_golden_row() -> None:
    written = {
        (name, version)
        for name, model in EVENTS.items()
        for version in range(1, model.newest_schema + 1)
    }
    kept = [(one["row"]["type"], one["row"]["schema_version"]) for one in GOLDEN]
    assert sorted(kept) == sorted(written), "add a row to tests/golden/events.json"


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda one: one["routing_key"])
def test_a_golden_row_is_read_and_published_as_ever(golden: dict[str, Any]) -> None:
    event = recorded(golden["row"])
    message = event.message()
    found = CloudEvent.model_validate_json(message.body).event()
    assert {
        "fact": found.fact,
        "patient_id": found.patient_id,
        "grantee": list(found.grantee),
        "target": found.target,
    } == golden["reads_as"]
    assert message.routing_key == golden["routing_key"]
    assert message.body == CloudEvent.model_validate_json(event.to_json()).to_json()


def test_upcasters_lead_from_version_1_to_the_one_that_is_written() -> None:
    expected = {
        (name, version)
        for name, model in EVENTS.items()
        for version in range(1, model.oldest_schema)
    }
    assert UPCASTERS.keys() == expected


# Older events


@pytest.fixture
def upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    next_version.upgrade(monkeypatch)


def test_upcasters_are_chained_from_any_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConsentGranted(events.ConsentGranted):
        newest_schema: ClassVar[int] = 4
        oldest_schema: ClassVar[int] = 4
        purposes: list[str]

    def with_purposes(data: Data) -> Data:
        return {**data, "purposes": [data["purpose"]]}

    next_version.upgrade(monkeypatch)
    monkeypatch.setitem(EVENTS, "ConsentGranted", ConsentGranted)
    monkeypatch.setitem(UPCASTERS, ("ConsentGranted", 3), with_purposes)
    for event, purposes in (
        (stored(1), ["unstated"]),
        (stored(3, purpose="care"), ["care"]),
        (stored(4, purposes=["care", "law"]), ["care", "law"]),
    ):
        found = CloudEvent.model_validate_json(event.to_json())
        assert (found.schemaversion, found.data["purposes"]) == (4, purposes)
        assert isinstance(found.event(), ConsentGranted)


@pytest.mark.usefixtures("upgraded")
async def test_the_aggregate_the_log_and_the_receipts_read_older_events_as_newer_ones(
    event_store_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EventStore(event_store_pool)
    first = received(grant("p-1", "d-1"))
    with monkeypatch.context() as before:
        before.delitem(UPCASTERS, ("ConsentGranted", 1))
        before.delitem(UPCASTERS, ("ConsentGranted", 2))
        before.setitem(EVENTS, "ConsentGranted", events.ConsentGranted)
        before.setattr("command_service.domain.patient.ConsentGranted", events.ConsentGranted)
        appended = await store.append(await decide(store, [first]), EPOCHS)
    second = await append(store, grant("p-1", "d-2"))

    rows = await event_store_pool.fetch("SELECT schema_version FROM events ORDER BY position")
    assert [row["schema_version"] for row in rows] == [1, 3]
    stream = (await store.read_streams(["p-1"]))["p-1"]
    assert (stream.version, len(stream.state.granted)) == (2, 2)
    log = await store.read_log(first.partition, 0, 10)
    found = [CloudEvent.model_validate_json(event.to_json()) for event in log]
    assert [(one.schemaversion, one.data["purpose"]) for one in found] == [
        (3, "unstated"),
        (3, "care"),
    ]
    assert log[1] == second.events[0]
    assert [event.message().body for event in log] == [one.to_json() for one in found]
    receipts = await store.read_receipts([first.command_id])
    assert receipts[first.command_id].outcome == appended.outcome(first.command_id)


def test_the_projection_reads_older_events_as_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    older = CloudEvent.model_validate_json(stored(1).message().body)
    next_version.upgrade(monkeypatch)
    fact = read(older)
    happened = next_version.ConsentGranted(**json.loads(GRANTED["data"]), purpose="unstated")
    assert fact == (Key("p-1", happened.grantee), happened)
    changes = fold([(older, fact)], {}, {})
    assert (changes.versions, changes.parked) == ({"p-1": 2}, [])


def test_an_upcaster_that_fails_makes_one_event_unreadable_and_stops_no_publishing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(data: Data) -> Data:
        return {"target": data["what the others have"]}

    monkeypatch.setitem(UPCASTERS, ("ConsentGranted", 1), fail)
    event = stored(1)
    with pytest.raises(UnknownEventError, match="schema version 1: KeyError in its upcaster"):
        read_event(event.type, 1, json.loads(event.data))
    message = event.message()
    assert json.loads(message.body)["data"] == json.loads(event.data)
    assert message.routing_key == "granted.doctor.exams.3"


# Newer events


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda one: one["routing_key"])
def test_the_key_of_an_unknown_event_is_that_of_a_known_one_with_the_same_fields(
    golden: dict[str, Any],
) -> None:
    row = golden["row"]
    guess = names.unknown_event_key(row["type"], json.loads(row["data"]), row["partition"])
    assert guess == golden["routing_key"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"schema_version": 3}, "granted.doctor.exams.3"),
        ({"type": "ConsentPaused"}, "paused.doctor.exams.3"),
        ({"type": "Consent"}, "unknown.doctor.exams.3"),
        ({"type": "Consent.#", "data": '{"target":"a.b"}'}, "unknown.unknown.unknown.3"),
        ({"type": "PatientMerged", "data": "{}"}, "patientmerged.unknown.unknown.3"),
        ({"data": '{"to_entity":"robot","target":7}'}, "granted.robot.unknown.3"),
        ({"type": "Consent" + "x" * 200}, "unknown.doctor.exams.3"),
    ],
)
def test_what_can_not_be_read_is_published_untouched_where_its_data_says(
    change: dict[str, object], key: str
) -> None:
    event = recorded(GRANTED, **change)
    message = event.message()
    assert message.routing_key == key
    found = json.loads(message.body)
    assert (found["type"], found["schemaversion"]) == (event.type, event.schema_version)
    assert found["data"] == json.loads(event.data)


async def test_a_patient_with_a_newer_event_is_not_decided_and_the_others_are(
    event_store_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EventStore(event_store_pool)
    newer = received(grant("p-1", "d-2"))
    await append(store, grant("p-1"))
    with monkeypatch.context() as after:
        next_version.upgrade(after)
        await store.append(await decide(store, [newer]), EPOCHS)

    both = [received(revoke("p-1")), received(grant("p-2")), newer]
    streams = await store.read_streams(["p-1", "p-2"])
    batch = Batch(await store.read_receipts([one.command_id for one in both]), streams)
    refused, decided, repeated = (batch.answer(one, uuid4) for one in both)
    assert isinstance(refused, CommandRejected)
    assert (refused.error, refused.details[0].field) == ("unreadable_history", "patient_id")
    assert refused.details[0].message == (
        "version 2 of its history: ConsentGranted of schema version 3 is not known here"
    )
    assert isinstance(decided, Decision)
    assert not isinstance(repeated, CommandRejected | Decision)
    assert isinstance(repeated.outcome, CommandRejected)
    assert repeated.outcome.error == "unreadable_history"

    next_version.upgrade(monkeypatch)
    (after_all,) = await decide(store, both[:1])
    assert after_all.version == 3
    receipts = await store.read_receipts([newer.command_id])
    assert isinstance(receipts[newer.command_id].outcome, CommandAccepted)


# Workers of both versions


def start_next(deployment: Deployment, service: ServiceName) -> Worker:
    """Start a worker of the next version."""
    worker = deployment.start(service, program=("-m", "tests.support.next_version", service, "run"))
    worker.wait_ready()
    return worker


def start_this(deployment: Deployment, service: ServiceName) -> Worker:
    worker = deployment.start(service)
    worker.wait_ready()
    return worker


async def publish_all_again(deployment: Deployment) -> None:
    """Pretend that nothing was confirmed, as after a death at the worst moment."""
    connection = await asyncpg.connect(deployment.event_store_url)
    await connection.execute("UPDATE partitions SET published_position = 0")
    await connection.close()


@pytest.fixture
async def seen(client: Client) -> list[Any]:
    """Collect what is published."""
    found: list[Any] = []
    await client.subscribe("#", found.append)
    return found


async def all_seen(seen: list[Any], *ids: str) -> dict[str, Any]:
    """Return the newest message of each event, once all these have come; repeats are allowed."""

    async def look() -> bool:
        return set(ids) <= {message.message_id for message in seen}

    await eventually(look, within=30)
    return {message.message_id: message for message in seen}


async def test_after_an_upgrade_the_old_log_is_published_and_read_alike(
    deployment: Deployment, client: Client, seen: list[Any]
) -> None:
    old = start_this(deployment, "command_service")
    first = await client.command("GrantConsent", "p-1")
    assert old.stop() == 0
    await all_seen(seen, first["events"][0]["id"])
    seen.clear()
    await publish_all_again(deployment)
    start_next(deployment, "command_service")
    second = await client.command("GrantConsent", "p-1", target="er_visits")

    ids = [outcome["events"][0]["id"] for outcome in (first, second)]
    found = await all_seen(seen, *ids)
    published = [json.loads(found[one].body) for one in ids]
    assert [(one["schemaversion"], one["data"]["purpose"]) for one in published] == [
        (3, "unstated"),
        (3, "care"),
    ]
    page = await client.query("ReadEvents", partition=first["partition"])
    assert page["events"] == published


async def test_a_worker_of_the_version_before_refuses_one_patient_and_publishes_everything(
    deployment: Deployment, client: Client, seen: list[Any]
) -> None:
    new = start_next(deployment, "command_service")
    newer = (await client.command("GrantConsent", "p-1"))["events"][0]["id"]
    decided_body, decided_id = body_of("RevokeConsent", "p-1", id_="d-9"), str(uuid4())
    decided = await client.reply(
        await client.send("RevokeConsent", decided_body, message_id=decided_id)
    )
    assert decided["error"] == "consent_not_granted"
    assert new.stop() == 0
    await all_seen(seen, newer)
    seen.clear()
    await publish_all_again(deployment)
    old = start_this(deployment, "command_service")

    body, message_id = body_of("RevokeConsent", "p-1"), str(uuid4())
    refused = await client.reply(await client.send("RevokeConsent", body, message_id=message_id))
    assert (refused["status"], refused["error"]) == ("rejected", "unreadable_history")
    repeated = await client.send("RevokeConsent", decided_body, message_id=decided_id)
    assert await client.reply(repeated) == decided, "what was decided stands"
    other = await client.command("GrantConsent", "p-2")
    (dead,) = await client.dead_letters()
    assert dead.headers["x-consent-error"] == "unreadable_history"
    assert json.loads(dead.body) == body
    found = await all_seen(seen, newer, other["events"][0]["id"])
    assert json.loads(found[newer].body)["schemaversion"] == 3
    assert found[newer].routing_key.startswith("granted.doctor.exams.")
    await old.logs("history.unreadable")
    assert "session.lost" not in old.log

    assert old.stop() == 0
    start_next(deployment, "command_service")
    again = await client.reply(await client.send("RevokeConsent", body, message_id=message_id))
    assert (again["status"], again["version"]) == ("accepted", 2)


async def test_a_newer_event_is_parked_and_applied_after_the_upgrade(
    deployment: Deployment, client: Client
) -> None:
    projector = start_this(deployment, "projection_service")
    start_next(deployment, "command_service")
    await client.command("GrantConsent", "p-1")
    connection = await asyncpg.connect(deployment.read_model_url)
    (parked,) = await eventually(lambda: list_parked(connection), within=30)
    assert parked.reason == "ConsentGranted of schema version 3 is not known here"
    assert projector.stop() == 0

    retry = deployment.run(
        "tests.support.next_version", "projection_service", "parked", "retry", "p-1"
    )
    assert retry.stdout == "applied 1, 0 still parked\n"
    assert await list_parked(connection) == []
    assert await read_model(deployment) == {("p-1", "doctor", "d-1"): ("exams",)}
    await connection.close()
