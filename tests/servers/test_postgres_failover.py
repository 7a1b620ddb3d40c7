"""A synchronous standby takes the primary's place, and nothing that was answered is lost."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.pair import Pair, open_pair
from tests.support.amqp import open_client
from tests.support.deployment import Deployment, ServiceName, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch
from tests.support.load import under_load

VHOST = "paired"
WHO = {
    "patient_id": "p-1",
    "entity_name": "doctor",
    "entity_id": "d-1",
    "permission": "exams",
}


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[str, Pair]]:
    with open_pair("event_store") as event_store, open_pair("read_model") as read_model:
        yield {"event_store": event_store, "read_model": read_model}


@pytest.fixture
def paired(sandbox: Sandbox, pairs: dict[str, Pair], tmp_path: Path) -> Iterator[Deployment]:
    """Run one worker of each kind, whose databases have standbys."""
    made = Deployment(
        rabbitmq_url=sandbox.broker.create_vhost(VHOST),
        event_store_url=pairs["event_store"].create_database("consent"),
        read_model_url=pairs["read_model"].create_database("consent"),
        partitions=PARTITIONS,
        folder=tmp_path,
    )
    made.prepare()
    made.start_both()
    yield made
    made.close()
    sandbox.broker.delete_vhost(VHOST)
    for pair in pairs.values():
        pair.drop_database("consent")


def at(server_url: str) -> str:
    """Name the database that the tests use at one server."""
    return server_url.replace("/postgres", "/consent")


async def test_either_database_may_fail_over(paired: Deployment, pairs: dict[str, Pair]) -> None:
    async with under_load(paired) as load:
        for pair in pairs.values():
            await asyncio.to_thread(pair.fail_over)
            await load.goes_on()
    for pair in pairs.values():
        await asyncio.to_thread(pair.follow)


@pytest.mark.parametrize(
    ("service", "name"),
    [("command_service", "event_store"), ("projection_service", "read_model")],
)
async def test_a_worker_at_a_standby_waits_and_says_so_until_it_is_promoted(
    paired: Deployment, pairs: dict[str, Pair], service: ServiceName, name: str
) -> None:
    pair = pairs[name]
    standby = at(pair.standby.url())
    urls = {"EVENT_STORE_URL": standby, "READ_MODEL_URL": standby}
    waiting = paired.start(service, **urls)

    async def says_so() -> bool:
        _, told = await asyncio.to_thread(waiting.get, "/health/ready")
        told_why = "read-only" in told and json.loads(told).get("missing") == "database"
        return told_why and "read-only" in waiting.log

    await eventually(says_so)
    checked = await asyncio.to_thread(paired.run, service, "check", **urls)
    assert checked.returncode == 1
    assert "read-only" in checked.stdout
    await asyncio.to_thread(pair.fail_over)
    await asyncio.to_thread(waiting.wait_ready)
    await asyncio.to_thread(pair.follow)


async def test_standbys_answer_too_and_never_less_than_was_asked_for(
    paired: Deployment, pairs: dict[str, Pair]
) -> None:
    pair = pairs["read_model"]
    helpers = [start_answering(paired, pair) for _ in range(2)]
    for helper in helpers:
        await asyncio.to_thread(helper.wait_ready)
    async with open_client(paired.rabbitmq_url, PARTITIONS) as client:
        for number in range(1, 21):
            verb = "GrantConsent" if number % 2 else "RevokeConsent"
            version = (await client.command(verb, "p-1"))["version"]
            answer = await client.query("HasConsent", min_version=version, **WHO)
            assert (answer["has_consent"], answer["version"]) == (number % 2 == 1, number)
    assert all([await answered(helper) for helper in helpers])
    owners = await fetch(paired.read_model_url, "SELECT owner FROM workers")
    assert len(owners) == 1, owners
    for helper in helpers:
        assert await asyncio.to_thread(helper.stop) == 0


async def test_a_standby_that_fell_behind_answers_no_more(
    paired: Deployment, pairs: dict[str, Pair]
) -> None:
    pair = pairs["read_model"]
    helper = start_answering(paired, pair)
    await asyncio.to_thread(helper.wait_ready)
    async with open_client(paired.rabbitmq_url, PARTITIONS) as client:
        await client.command("GrantConsent", "p-1")
        await client.query("HasConsent", min_version=1, **WHO)
        await asyncio.to_thread(pair.standby.execute, "SELECT pg_wal_replay_pause()")
        version = (await client.command("RevokeConsent", "p-1"))["version"]
        for _ in range(4):
            asked = await client.query("HasConsent", min_version=version, **WHO)
            assert not asked["has_consent"]

        async def says_so() -> bool:
            _, told = await asyncio.to_thread(helper.get, "/health/ready")
            return "no answer" in told

        await eventually(says_so)
        for _ in range(10):
            assert not (await client.query("HasConsent", **WHO))["has_consent"]
        await asyncio.to_thread(pair.standby.execute, "SELECT pg_wal_replay_resume()")
        await asyncio.to_thread(helper.wait_ready)


def start_answering(deployment: Deployment, pair: Pair) -> Worker:
    return deployment.start(
        "projection_service",
        program=("-m", "projection_service", "run", "--answers-only"),
        READ_MODEL_URL=at(pair.standby.url()),
    )


async def answered(worker: Worker) -> bool:
    return await asyncio.to_thread(worker.metric, "consent_queries_total") > 0
