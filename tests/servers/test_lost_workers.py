"""A worker that dies, falls silent or hangs costs its partitions seconds, and others nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from aiohttp import ClientSession

from shared.errors.connection import ConnectionLost
from shared.rabbitmq.connection import connect
from shared.telemetry.readiness import STUCK_S, Readiness
from shared.worker.http import serve_operations
from shared.worker.leases import LEASE_S
from shared.worker.leaving import HURRIED
from tests.chaos.links import Disorder, open_wires
from tests.conftest import PARTITIONS
from tests.sandbox.home import free_ports
from tests.support.amqp import Client
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch, flood, log_size, projected, replies

SOONER_THAN_ITS_TIMEOUTS_S: Final = 25.0
"""Bounds a hang: a statement, and its cancelling, wait for thirty seconds each."""

END_KEEPER = """
    SELECT pg_terminate_backend(pid) FROM pg_locks
     WHERE locktype = 'advisory' AND granted AND database = (
           SELECT oid FROM pg_database WHERE datname = current_database())"""


def name_of(worker: Worker) -> str:
    return worker.log_file.stem


async def owned(deployment: Deployment, worker: Worker) -> set[int]:
    rows = await fetch(
        deployment.event_store_url,
        f"SELECT partition FROM partitions WHERE owner LIKE '{name_of(worker)}/%'",  # noqa: S608
    )
    return {row["partition"] for row in rows}


async def two_workers(deployment: Deployment, **first: str) -> tuple[Worker, Worker]:
    """Start two command workers, and wait until each owns half of the partitions."""
    one, other = deployment.start("command_service", **first), deployment.start("command_service")
    for worker in (one, other):
        await asyncio.to_thread(worker.wait_ready)

    async def fair() -> bool:
        return all([len(await owned(deployment, each)) == PARTITIONS / 2 for each in (one, other)])

    await eventually(fair)
    return one, other


async def test_a_killed_worker_is_replaced_without_waiting_for_its_leases(
    deployment: Deployment, client: Client
) -> None:
    killed, _ = await two_workers(deployment)
    sent = await flood(client, patients=20)
    killed.kill()
    await fetch(
        deployment.event_store_url,
        "UPDATE partitions SET leased_until = now() + interval '1 day' "  # noqa: S608
        f"WHERE owner LIKE '{name_of(killed)}/%' RETURNING partition",
    )
    sent += await flood(client, patients=20, doctors=1)
    outcomes = await replies(client, sent)
    assert len({one["command_id"] for one in outcomes}) == len(sent)
    accepted = sum(len(one.get("events", [])) for one in outcomes)
    assert await log_size(deployment) == accepted


async def test_a_killed_projection_worker_is_replaced_as_soon(
    deployment: Deployment, client: Client
) -> None:
    workers = [deployment.start("projection_service") for _ in range(2)]
    for worker in (*workers, deployment.start("command_service")):
        await asyncio.to_thread(worker.wait_ready)
    workers[0].kill()
    await fetch(
        deployment.read_model_url,
        "UPDATE partitions SET leased_until = now() + interval '1 day' "  # noqa: S608
        f"WHERE owner LIKE '{name_of(workers[0])}/%' RETURNING partition",
    )
    outcomes = await replies(client, await flood(client, patients=20))
    accepted = sum(len(one.get("events", [])) for one in outcomes)

    async def all_projected() -> bool:
        return await projected(deployment) == accepted

    await eventually(all_projected)


async def test_a_worker_whose_database_falls_silent_gives_way_to_another(
    deployment: Deployment, client: Client
) -> None:
    with open_wires() as wires:
        link = wires.lay(deployment.event_store_url)
        silent, other = await two_workers(deployment, EVENT_STORE_URL=link.url)
        link.disturb(Disorder("silence"))
        sent = await flood(client, patients=20)
        async with asyncio.timeout(SOONER_THAN_ITS_TIMEOUTS_S):
            outcomes = await replies(client, sent)
        assert len({one["command_id"] for one in outcomes}) == len(sent)
        await silent.logs("leases.ran_out", "the database did not answer")
        assert silent.process.poll() is None, silent.account()
        assert "session.lost" not in other.log
        link.disturb(None)

        async def works_again() -> bool:
            return len(await owned(deployment, silent)) == PARTITIONS / 2

        await eventually(works_again, within=90)


IN_A_TRIAL = """
import asyncio
import structlog
from command_service.path import rehearsal
decide = rehearsal._decide
async def decide_and_stop(*arguments):
    await decide(*arguments)
    structlog.get_logger().info("trial.decided")
    await asyncio.sleep(3600)
rehearsal._decide = decide_and_stop
from command_service.cli import app
app(["run"])
"""


async def test_a_worker_that_falls_silent_within_a_transaction_holds_no_partition(
    deployment: Deployment, client: Client
) -> None:
    with open_wires() as wires:
        link = wires.lay(deployment.event_store_url)
        silent = deployment.start(
            "command_service", program=("-c", IN_A_TRIAL), EVENT_STORE_URL=link.url
        )
        await silent.logs("trial.decided")
        link.disturb(Disorder("silence"))
        deployment.start("command_service")
        sent = await flood(client, patients=20)
        assert len(await replies(client, sent)) == len(sent)


async def test_a_worker_that_loses_its_keepers_connection_alone_begins_anew_by_itself(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service")
    await asyncio.to_thread(worker.wait_ready)
    sent = await flood(client, patients=20)
    assert len(await fetch(deployment.event_store_url, END_KEEPER)) == 1
    outcomes = await replies(client, sent)
    assert len({one["command_id"] for one in outcomes}) == len(sent)

    async def began_anew() -> bool:
        return worker.log.count('"session.started"') == 2

    await eventually(began_anew)


ZOMBIE = """
import asyncio
from command_service import worker
loops = worker.CommandWorker.loops
async def undead():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
worker.CommandWorker.loops = lambda self: (*loops(self), undead())
from command_service.cli import app
app(["run"])
"""


async def test_a_worker_whose_session_can_not_end_leaves_with_exit_code_3(
    deployment: Deployment, client: Client
) -> None:
    zombie = deployment.start("command_service", program=("-c", ZOMBIE))
    await asyncio.to_thread(zombie.wait_ready)
    await fetch(deployment.event_store_url, END_KEEPER)
    assert await asyncio.to_thread(zombie.process.wait, 60) == HURRIED
    assert "did not end" in zombie.log
    deployment.start("command_service")
    assert (await client.command("GrantConsent", "p-1"))["status"] == "accepted"


CANCELLED_BY_A_LIBRARY = """
import asyncio
from command_service.path import settle
answer = settle.Settler.answer
times = 0
async def answer_or_not(self, answered):
    global times
    times += 1
    if times == 1:
        raise asyncio.CancelledError
    await answer(self, answered)
settle.Settler.answer = answer_or_not
from command_service.cli import app
app(["run"])
"""


async def test_a_loop_that_a_library_cancels_is_a_lost_session_and_no_silent_end(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service", program=("-c", CANCELLED_BY_A_LIBRARY))
    await asyncio.to_thread(worker.wait_ready)
    assert (await client.command("GrantConsent", "p-1"))["status"] == "accepted"
    assert worker.log.count('"session.lost"') == 1


async def test_a_connection_tells_another_tasks_cancellation_from_ones_own(
    deployment: Deployment,
) -> None:
    with pytest.raises(ConnectionLost):
        async with connect(deployment.rabbitmq_url, name="stuck"):
            raise asyncio.CancelledError
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), connect(deployment.rabbitmq_url, name="waits"):
            await asyncio.sleep(60)


@asynccontextmanager
async def served(readiness: Readiness) -> AsyncIterator[str]:
    (port,) = free_ports(1)
    async with serve_operations("127.0.0.1", port, readiness):
        yield f"http://127.0.0.1:{port}/health/live"


async def live(url: str) -> tuple[int, str]:
    async with ClientSession() as session, session.get(url) as answer:
        return answer.status, json.loads(await answer.text())["status"]


async def test_live_fails_when_nothing_was_renewed_for_a_minute_and_nothing_is_waited_for() -> None:
    readiness = Readiness()
    readiness.is_ready()
    readiness.renewals(lambda: STUCK_S + 1)
    async with served(readiness) as url:
        assert await live(url) == (200, "live"), "it has just become ready"
        readiness._waited_until -= STUCK_S + 1  # noqa: SLF001 - a minute later
        assert await live(url) == (503, "stuck")
        readiness.renewals(lambda: LEASE_S)
        assert await live(url) == (200, "live")
        readiness.renewals(None)
        assert await live(url) == (503, "stuck")
        for dependency in ("database", "broker", "topology"):
            readiness.waits_for(dependency)
            assert await live(url) == (200, "live")
        readiness.is_ready()
        assert await live(url) == (200, "live"), "it waited a moment ago"
