"""A broker short of memory or disk takes nothing from whoever publishes: all wait, and say so."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final
from urllib.parse import quote

import pytest

from shared.client.client import ConsentClient
from shared.errors import BrokerBlocked, NoAnswer
from shared.errors.connection import BROKER_ERRORS
from shared.rabbitmq.alarms.alarm_probe import AlarmProbe
from shared.rabbitmq.connection import Properties, connect
from shared.rabbitmq.publishing import Outgoing, publish, publish_at_once, publish_in_order
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_cli import CONSENT
from tests.support import warm
from tests.support.amqp import Client, Json
from tests.support.deployment import SERVICES, Deployment, Worker
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(300)

ALARMS: Final = {
    "low on disk": (("set_disk_free_limit", "900000GB"), ("set_disk_free_limit", "50MB")),
    "low on memory": (
        ("set_vm_memory_high_watermark", "0"),
        ("set_vm_memory_high_watermark", "0.4"),
    ),
}
ENDS_WITHIN_S: Final = 60
COMMANDS: Final = 1_000
"""As many as a worker takes in hand."""
PAGES: Final = 20
"""Queries for long pages, whose answers fill whatever buffers there are."""
BEYOND_HEARTBEATS_S: Final = 45
"""By then a connection whose heartbeats are held up would be given up."""


@contextmanager
def alarm(sandbox: Sandbox, reason: str = "low on disk") -> Iterator[None]:
    raised, over = ALARMS[reason]
    sandbox.broker.ctl(*raised)
    try:
        yield
    finally:
        sandbox.broker.ctl(*over)


def blocked(worker: Worker, reason: str = "low on disk") -> Callable[[], Awaitable[bool]]:
    """Whether it says that it waits, and for what: a state, with a name and a number."""

    async def look() -> bool:
        status, body = worker.get("/health/ready")
        if status != 503:
            return False
        troubles = {one["missing"]: one["reason"] for one in json.loads(body).get("troubles", ())}
        named = f"blocked ({reason})" in troubles.get("broker_blocked", "")
        return named and worker.metric("consent_broker_blocked") == 1

    return look


def well(worker: Worker) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        ready = worker.get("/health/ready")[0] == 200
        return ready and worker.metric("consent_broker_blocked") == 0

    return look


@pytest.mark.parametrize("reason", list(ALARMS))
async def test_workers_that_do_nothing_know_that_the_broker_is_blocked_and_when_it_is_not(
    deployment: Deployment, sandbox: Sandbox, reason: str
) -> None:
    workers = deployment.start_both()
    with alarm(sandbox, reason):
        for worker in workers:
            await eventually(blocked(worker, reason), within=60)
            await worker.logs('"trouble.seen"')
    for worker in workers:
        await eventually(well(worker), within=60)
        assert "session.lost" not in worker.log


async def test_work_in_hand_waits_out_an_alarm_and_is_answered_once_it_is_over(
    deployment: Deployment, sandbox: Sandbox, client: Client
) -> None:
    worker = deployment.start("command_service")
    done = [await client.send("GrantConsent", command(number, "to")) for number in range(COMMANDS)]
    for one in done:
        await client.reply(one, within=60)
    assert worker.stop() == 0

    sent = [
        await client.send("RevokeConsent", command(number, "from")) for number in range(COMMANDS)
    ]
    pages = {"exchange": "consent.queries", "key": "ReadEvents"}
    sent += [await client.send("ReadEvents", {"partition": 0}, **pages) for _ in range(PAGES)]
    with alarm(sandbox):
        workers = [deployment.start(service) for service in SERVICES]
        for worker in workers:
            await eventually(blocked(worker), within=60)
        await asyncio.sleep(BEYOND_HEARTBEATS_S)
        assert all(client.waiting[one].empty() for one in sent)
    outcomes = [await client.reply(one, within=60) for one in sent]
    assert {outcome["status"] for outcome in outcomes} == {"accepted", "ok"}
    for worker in workers:
        await eventually(well(worker), within=60)
        assert "session.lost" not in worker.log


def command(number: int, preposition: str) -> Json:
    who = {f"{preposition}_entity": "doctor", f"{preposition}_id": "d-1"}
    return {"patient_id": f"p-{number}", "target": "all", **who}


async def test_a_command_fails_within_its_own_deadline_and_says_why(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    deployment.start("command_service").wait_ready()
    async with ConsentClient.connect(
        deployment.rabbitmq_url, partitions=PARTITIONS, within=5.0
    ) as client:
        with alarm(sandbox):
            with pytest.raises(NoAnswer, match=r"blocked \(low on disk\)") as raised:
                await client.grant("p-1", "doctor", "d-1", "exams")
            assert isinstance(raised.value.__cause__, BrokerBlocked)
            done = run(deployment, CONSENT, "grant", "p-1", "doctor", "d-1", "--within", "2")
            assert done["code"] == 3
            assert "no answer to GrantConsent: the broker is blocked (low on disk)" in done["said"]
            assert done["took"] < ENDS_WITHIN_S
        assert (await client.grant("p-1", "doctor", "d-2", "exams")).status == "accepted"


async def test_a_publish_that_waits_ends_with_its_connection(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    with alarm(sandbox):
        async with connect(deployment.rabbitmq_url, name="test of waiting") as broker:
            bell, channel = await AlarmProbe.open(broker), await broker.channel()
            await_confirms = await broker.channel(confirms=True)
            with pytest.raises(BrokerBlocked):
                await bell.ring()
            message = Outgoing("", "nobody", b"", Properties())
            waiting = [
                asyncio.ensure_future(one)
                for one in (
                    publish(channel, message),
                    publish_at_once(channel, [message]),
                    publish_in_order(await_confirms, [message]),
                )
            ]
            assert not (await asyncio.wait(waiting, timeout=1))[0]
            await cut_off(sandbox, "test of waiting")
            for ended in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(ended, BROKER_ERRORS)


async def cut_off(sandbox: Sandbox, name: str) -> None:
    """Have the broker close the connection of this name, once it knows of it."""

    async def closed() -> bool:
        for one in sandbox.broker.api("GET", "/connections"):
            if one.get("client_properties", {}).get("connection_name") == name:
                sandbox.broker.api("DELETE", f"/connections/{quote(one['name'])}")
                return True
        return False

    await eventually(closed)


def test_check_ends_and_names_the_alarm(deployment: Deployment, sandbox: Sandbox) -> None:
    with alarm(sandbox):
        with ThreadPoolExecutor() as threads:
            both = list(threads.map(lambda one: check(deployment, one), SERVICES))
        for done in both:
            assert done["code"] == 1
            assert "✗ broker alarm: the broker is blocked (low on disk)" in done["said"]
            assert done["took"] < ENDS_WITHIN_S
    assert check(deployment, "command_service")["code"] == 0


def check(deployment: Deployment, service: str) -> dict[str, Any]:
    return run(deployment, sys.executable, "-m", service, "check")


def run(deployment: Deployment, *words: object) -> dict[str, Any]:
    began = monotonic()
    done = warm.run(words, deployment.environment(), within=120)
    return {
        "code": done.returncode,
        "said": done.stdout + done.stderr,
        "took": monotonic() - began,
    }
