"""A broker or a database that goes away: it is waited for, and said, and used again at once."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic

import pytest

from tests.amqp import open_client
from tests.conftest import PARTITIONS
from tests.deployment import Deployment, ServiceName, Worker, open_deployment
from tests.eventually import eventually
from tests.facts import folded_log, log_size, projected, read_model
from tests.sandbox import Sandbox, open_sandbox
from tests.sandbox.servers import Server

RECOVERS_WITHIN_S = 5.0
AWAY_S = 8.0
"""Long enough for leases to run out, and for pauses to reach their longest."""


@pytest.fixture(scope="module")
def durable() -> Iterator[Sandbox]:
    """Start servers that may be killed: these lose nothing that they confirmed."""
    with open_sandbox(durable=True) as servers:
        yield servers


@pytest.fixture
def away(durable: Sandbox) -> Iterator[Deployment]:
    with open_deployment(durable, "away", partitions=PARTITIONS) as made:
        made.prepare()
        yield made


def warnings(worker: Worker) -> int:
    lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    return sum(line["level"] in {"warning", "error"} for line in lines)


async def ready(worker: Worker) -> bool:
    return worker.get("/health/ready")[0] == 200


def missing(worker: Worker, what: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        status, body = worker.get("/health/ready")
        return status == 503 and json.loads(body)["missing"] == what

    return look


SERVERS: list[tuple[str, Callable[[Sandbox], Server], ServiceName]] = [
    ("broker", lambda sandbox: sandbox.broker, "command_service"),
    ("broker", lambda sandbox: sandbox.broker, "projection_service"),
    ("database", lambda sandbox: sandbox.event_store_server, "command_service"),
    ("database", lambda sandbox: sandbox.read_model_server, "projection_service"),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("what", "server", "service"), SERVERS)
async def test_what_goes_away_is_missed_and_used_again_within_five_seconds_of_its_return(
    durable: Sandbox,
    away: Deployment,
    what: str,
    server: Callable[[Sandbox], Server],
    service: ServiceName,
) -> None:
    worker = away.start(service)
    worker.wait_ready()
    before = warnings(worker)
    server(durable).kill()
    await eventually(missing(worker, what), within=20)
    await asyncio.sleep(AWAY_S)  # the pause is the stimulus: it is away for a while
    assert worker.get("/health/live")[0] == 200
    assert warnings(worker) - before <= 4, worker.log

    await asyncio.to_thread(server(durable).start)
    back = monotonic()
    await eventually(lambda: ready(worker), within=20)
    assert monotonic() - back < RECOVERS_WITHIN_S
    assert worker.process.poll() is None


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("what", "server", "service"), SERVERS)
async def test_what_is_not_there_at_the_start_is_waited_for(
    durable: Sandbox,
    away: Deployment,
    what: str,
    server: Callable[[Sandbox], Server],
    service: ServiceName,
) -> None:
    # Stopped, not killed: a broker may forget what was declared just before it was killed.
    await asyncio.to_thread(server(durable).stop)
    worker = away.start(service)
    await eventually(missing(worker, what), within=20)
    await asyncio.to_thread(server(durable).start)
    await eventually(lambda: ready(worker), within=10)


@pytest.mark.timeout(180)
async def test_commands_in_flight_survive_every_server_going_down_in_turn(
    durable: Sandbox, away: Deployment
) -> None:
    away.start_both()
    accepted = 0
    for number, server in enumerate(
        (durable.event_store_server, durable.read_model_server, durable.broker)
    ):
        async with open_client(away.rabbitmq_url, PARTITIONS) as client:
            for patient in range(40):
                body = {"to_entity": "doctor", "to_id": f"d-{number}", "target": "exams"}
                await client.send("GrantConsent", {"patient_id": f"p-{patient}", **body})
                accepted += 1
            server.kill()
        await asyncio.to_thread(server.start)

    async def all_there() -> bool:
        return await log_size(away) == await projected(away) == accepted

    await eventually(all_there, within=40)
    assert await read_model(away) == await folded_log(away)
