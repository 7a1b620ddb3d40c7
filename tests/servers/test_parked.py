"""Events that can't be applied: one patient waits, nobody else; a retry gives the right model."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aio_pika
import asyncpg
import pytest

from projection_service.parked import discard_parked, list_parked, retry_parked
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually


@pytest.fixture
async def connection(
    deployment: Deployment,
) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    opened = await asyncpg.connect(deployment.read_model_url)
    yield opened
    await opened.close()


def event_of(partition: int, position: int, version: int, **change: object) -> dict[str, Any]:
    """Write an event as the command service publishes them, but for what is changed."""
    return {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": "consent/command-service",
        "type": "ConsentGranted",
        "subject": "p-odd",
        "time": "2026-11-23T08:00:00.000000Z",
        "datacontenttype": "application/json",
        "schemaversion": 1,
        "partition": partition,
        "position": position,
        "streamversion": version,
        "correlationid": "c",
        "causationid": str(uuid4()),
        "data": {
            "patient_id": "p-odd",
            "to_entity": "doctor",
            "to_id": f"d-{version}",
            "target": "exams",
        },
        **change,
    }


async def publish(client: Client, *events: dict[str, Any]) -> None:
    """Publish events as if the command service had."""
    exchange = await client.channel.get_exchange("consent.events", ensure=False)
    for event in events:
        await exchange.publish(
            aio_pika.Message(json.dumps(event).encode()),
            routing_key=f"granted.doctor.exams.{event['partition']}",
        )


async def projected(connection: "asyncpg.Connection[asyncpg.Record]", position: int) -> bool:
    found: bool = await connection.fetchval(
        "SELECT coalesce(max(position), 0) >= $1 FROM checkpoints", position
    )
    return found


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "ConsentExpired"},
        {"schemaversion": 3},
        {"data": {"patient_id": "p-odd", "to_entity": "robot", "to_id": "r", "target": "exams"}},
        {"data": {}},
    ],
)
async def test_an_event_that_can_not_be_applied_parks_its_patient_and_nobody_else(
    deployment: Deployment,
    client: Client,
    connection: "asyncpg.Connection[asyncpg.Record]",
    odd: dict[str, object],
) -> None:
    worker = deployment.start("projection_service")
    worker.wait_ready()
    innocent = {
        "subject": "p-other",
        "data": {
            "patient_id": "p-other",
            "to_entity": "nurse",
            "to_id": "n-1",
            "target": "exams",
        },
    }
    await publish(
        client,
        event_of(0, 1, 1),
        event_of(0, 2, 2, **odd),
        event_of(0, 3, 1, **innocent),
        event_of(0, 4, 3),
    )
    await eventually(lambda: projected(connection, 4))

    (parked,) = await list_parked(connection)
    assert (parked.patient_id, parked.events, parked.first_position) == ("p-odd", 2, 2)
    odd_one = await client.query("ListConsents", patient_id="p-odd")
    assert (odd_one["version"], [one["entity_id"] for one in odd_one["consents"]]) == (1, ["d-1"])
    other = await client.query("ListConsents", patient_id="p-other")
    assert [one["permissions"] for one in other["consents"]] == [["exams"]]
    await worker.logs("event.parked")
    assert worker.metric("consent_events_projected_total") >= 4


async def test_a_retry_after_a_fix_applies_in_order_and_the_patient_goes_on(
    deployment: Deployment, client: Client, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    worker = deployment.start("projection_service")
    worker.wait_ready()
    revoked = {
        "type": "ConsentRevoked",
        "data": {
            "patient_id": "p-odd",
            "from_entity": "doctor",
            "from_id": "d-2",
            "target": "exams",
        },
    }
    await publish(
        client,
        event_of(0, 1, 1),
        event_of(0, 2, 2, schemaversion=3),
        event_of(0, 3, 3, **revoked),
    )
    await eventually(lambda: projected(connection, 3))
    before = await retry_parked(connection, "p-odd")
    assert (before.applied, before.left) == (0, 2)
    assert "schema version 3" in (before.reason or "")

    # The fix: here, what a version that knows the event would make of it.
    await connection.execute(
        """UPDATE parked_events SET event = jsonb_set(event::jsonb, '{schemaversion}', '1')
           WHERE position = 2"""
    )
    done = deployment.run("projection_service", "parked", "retry", "p-odd")
    assert (done.returncode, done.stdout) == (0, "applied 2, 0 still parked\n")
    assert await list_parked(connection) == []

    await publish(client, event_of(0, 4, 4))
    found = await client.query("ListConsents", patient_id="p-odd", min_version=4)
    assert {one["entity_id"]: one["permissions"] for one in found["consents"]} == {
        "d-1": ["exams"],
        "d-4": ["exams"],
    }


async def test_a_discarded_event_is_given_up_and_the_later_ones_can_be_retried(
    deployment: Deployment, client: Client, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    worker = deployment.start("projection_service")
    worker.wait_ready()
    await publish(client, event_of(0, 1, 1, type="ConsentExpired"), event_of(0, 2, 2))
    await eventually(lambda: projected(connection, 2))
    assert not await discard_parked(connection, "p-odd", 99)

    listed = deployment.run("projection_service", "parked", "list", "--json")
    assert json.loads(listed.stdout)[0]["patient_id"] == "p-odd"
    shown = deployment.run("projection_service", "parked", "show", "p-odd")
    assert [json.loads(line)["position"] for line in shown.stdout.splitlines()] == [1, 2]
    assert deployment.run("projection_service", "parked", "discard", "p-odd", "1").returncode == 0
    assert (await retry_parked(connection, "p-odd")).applied == 1
    found = await client.query("ListConsents", patient_id="p-odd", min_version=2)
    assert [one["entity_id"] for one in found["consents"]] == ["d-2"]


async def test_a_retry_beside_a_busy_projector_loses_and_doubles_nothing(
    deployment: Deployment, client: Client, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    deployment.start("projection_service").wait_ready()
    await publish(client, event_of(0, 1, 1, schemaversion=3))
    await eventually(lambda: projected(connection, 1))
    await connection.execute(
        "UPDATE parked_events SET event = jsonb_set(event::jsonb, '{schemaversion}', '1')"
    )
    for version in range(2, 60):
        await publish(client, event_of(0, version, version))
        if version % 10 == 0:
            await retry_parked(connection, "p-odd")
    await eventually(lambda: projected(connection, 59))
    await retry_parked(connection, "p-odd")
    assert await list_parked(connection) == []
    found = await client.query("ListConsents", patient_id="p-odd", min_version=59)
    assert len(found["consents"]) == 59
