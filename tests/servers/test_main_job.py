"""The whole way: a command in, an event out, a query answered."""

import json
from typing import Any

import pytest

from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually


@pytest.fixture(autouse=True)
def workers(deployment: Deployment) -> None:
    deployment.start_both()


async def test_a_grant_is_accepted_recorded_published_and_visible(client: Client) -> None:
    seen: list[Any] = []
    await client.subscribe("granted.#", seen.append)

    accepted = await client.command("GrantConsent", "p-1", target="exams")
    assert accepted["status"] == "accepted"
    assert accepted["version"] == 1

    held = await client.query(
        "HasConsent",
        patient_id="p-1",
        entity_name="doctor",
        entity_id="d-1",
        permission="exams",
        min_version=1,
    )
    assert (held["has_consent"], held["version"]) == (True, 1)

    await eventually(lambda: _some(seen))
    event = json.loads(seen[0].body)
    assert seen[0].routing_key == f"granted.doctor.exams.{accepted['partition']}"
    assert event["id"] == seen[0].message_id == accepted["events"][0]["id"]
    assert event["data"] == {
        "patient_id": "p-1",
        "to_entity": "doctor",
        "to_id": "d-1",
        "target": "exams",
    }


async def _some(seen: list[Any]) -> bool:
    return bool(seen)
