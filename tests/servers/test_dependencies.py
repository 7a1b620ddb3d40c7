"""A broker or a database that goes away: it is waited for, and said, and used again."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence

import asyncpg
import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox, open_sandbox
from tests.sandbox.servers import Server
from tests.support.amqp import Client, Json, body_of, open_client
from tests.support.deployment import Deployment, Worker, open_deployment
from tests.support.eventually import eventually
from tests.support.facts import folded_log, log_size, projected, read_model

AWAY_S = 8.0
"""Long enough for leases to run out, and for pauses to reach their longest."""
MISSED_WITHIN_S = 60.0
USED_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def durable() -> Iterator[Sandbox]:
    """Start servers that may be killed: these lose nothing that they confirmed."""
    with open_sandbox(durable=True) as servers:
        yield servers


@pytest.fixture(scope="module")
def prepared(durable: Sandbox) -> Iterator[Deployment]:
    with open_deployment(durable, "away", partitions=PARTITIONS) as made:
        made.prepare()
        durable.broker.put_on_disk()
        yield made


@pytest.fixture
def away(durable: Sandbox, prepared: Deployment) -> Iterator[Deployment]:
    """Leave no worker behind, and every server up."""
    yield prepared
    prepared.close()
    for server in (durable.broker, durable.event_store_server, durable.read_model_server):
        if not server.answers():
            server.stop()
            server.start()


def warnings(worker: Worker) -> int:
    whole = worker.log.rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return sum(line["level"] in {"warning", "error"} for line in lines)


def all_ready(workers: Sequence[Worker]) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return all(worker.get("/health/ready")[0] == 200 for worker in workers)

    return look


def all_miss(workers: Sequence[Worker], what: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        answers = [worker.get("/health/ready") for worker in workers]
        return all(
            status == 503 and json.loads(body)["missing"] == what for status, body in answers
        )

    return look


SERVERS: list[tuple[str, Callable[[Sandbox], tuple[Server, ...]]]] = [
    ("broker", lambda sandbox: (sandbox.broker,)),
    ("database", lambda sandbox: (sandbox.event_store_server, sandbox.read_model_server)),
]


FULL = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON command_receipts FOR EACH STATEMENT
    EXECUTE FUNCTION refuse();
"""


async def test_a_database_that_answers_and_refuses_to_write_costs_no_command(
    durable: Sandbox, away: Deployment
) -> None:
    connection = await asyncpg.connect(away.event_store_url)
    worker = away.start("command_service")
    worker.wait_ready()
    await connection.execute(FULL)
    async with open_client(away.rabbitmq_url, PARTITIONS) as client:
        sent = [
            await client.send("GrantConsent", body_of("GrantConsent", f"p-full-{patient}"))
            for patient in range(40)
        ]

        async def named() -> bool:
            told = json.loads(worker.get("/health/ready")[1])
            return told.get("missing") == "database" and "no space left" in told["reason"]

        await eventually(named)
        await connection.execute("DROP TRIGGER full_disk ON command_receipts")
        await connection.close()
        outcomes = [await client.reply(one, within=60) for one in sent]
        assert {one["status"] for one in outcomes} == {"accepted"}
        letters = await client.channel.get_queue("consent.dead-letters", ensure=False)
        assert await letters.get(fail=False) is None


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("what", "servers"), SERVERS, ids=["broker", "databases"])
async def test_what_goes_away_is_missed_and_used_again_by_both_workers_when_it_is_back(
    durable: Sandbox,
    away: Deployment,
    what: str,
    servers: Callable[[Sandbox], tuple[Server, ...]],
) -> None:
    workers = away.start_both()
    before = [warnings(worker) for worker in workers]
    for server in servers(durable):
        server.kill()
    await eventually(all_miss(workers, what), within=MISSED_WITHIN_S)
    await asyncio.sleep(AWAY_S)  # the pause is the stimulus: it is away for a while
    for worker, number in zip(workers, before, strict=True):
        assert worker.get("/health/live")[0] == 200
        assert warnings(worker) - number <= 4, worker.log

    for server in servers(durable):
        await asyncio.to_thread(server.start)
    await eventually(all_ready(workers), within=USED_WITHIN_S)
    assert [worker.process.poll() for worker in workers] == [None, None]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("what", "servers"), SERVERS, ids=["broker", "databases"])
async def test_what_is_not_there_at_the_start_is_waited_for(
    durable: Sandbox,
    away: Deployment,
    what: str,
    servers: Callable[[Sandbox], tuple[Server, ...]],
) -> None:
    for server in servers(durable):
        await asyncio.to_thread(server.stop)
    workers = away.start("command_service"), away.start("projection_service")
    await eventually(all_miss(workers, what), within=MISSED_WITHIN_S)
    for server in servers(durable):
        await asyncio.to_thread(server.start)
    await eventually(all_ready(workers), within=USED_WITHIN_S)


@pytest.mark.timeout(300)
async def test_commands_in_flight_survive_every_server_going_down_in_turn(
    durable: Sandbox, away: Deployment
) -> None:
    away.start_both()
    accepted = await log_size(away)
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

    await eventually(all_there, within=90)
    assert await read_model(away) == await folded_log(away)


@pytest.mark.timeout(300)
async def test_what_a_crash_of_the_read_model_forgets_is_read_from_the_log_again(
    durable: Sandbox, away: Deployment
) -> None:
    """Its commits don't wait for the disk; the checkpoint is forgotten with what it covers."""
    durable.read_model_server.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
    durable.read_model_server.execute("SELECT pg_reload_conf()")
    away.start("command_service").wait_ready()
    forgotten = 0
    async with open_client(away.rabbitmq_url, PARTITIONS) as client:
        for attempt in range(20):
            projector = away.start("projection_service")
            projector.wait_ready()
            outcomes = [
                await client.command("GrantConsent", f"p-forgotten-{number}", id_=f"d-{attempt}")
                for number in range(20)
            ]
            assert await all_held(client, outcomes, f"d-{attempt}")
            before = await projected(away)
            projector.kill()
            durable.read_model_server.kill()
            await asyncio.to_thread(durable.read_model_server.start)
            forgotten += before - await projected(away)
            if forgotten:
                break
        assert forgotten, "no crash came before the disk"
        away.start("projection_service").wait_ready()
        assert await all_held(client, outcomes, f"d-{attempt}")
    assert await read_model(away) == await folded_log(away)


async def all_held(client: Client, outcomes: Sequence[Json], doctor: str) -> bool:
    """Ask for each grant as of the version that its sender was told."""
    asked = (
        client.query(
            "HasConsent",
            patient_id=outcome["patient_id"],
            entity_name="doctor",
            entity_id=doctor,
            permission="exams",
            min_version=outcome["version"],
        )
        for outcome in outcomes
    )
    answers = await asyncio.gather(*asked)
    return all(answer["has_consent"] for answer in answers)
