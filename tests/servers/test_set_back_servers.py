"""Event stores set back as they are in earnest, under load: dumps, base backups, failovers."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from shared.values.partition import partition_of
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox, install, open_sandbox
from tests.sandbox.programs import PostgresProgram
from tests.support.amqp import Client, Json, body_of, open_client
from tests.support.deployment import Deployment, Worker, open_deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch, folded_log, log_size, projected, read_model
from tests.support.standby import PostgresPair, copy

pytestmark = pytest.mark.timeout(600)

PATIENTS = [f"p-{number}" for number in range(8)]
REPLY_WITHIN_S = 8.0


@pytest.fixture(scope="module")
def servers() -> Iterator[Sandbox]:
    """Give servers that may be killed and restored."""
    if install.postgres_programs() is None or install.rabbitmq_programs() is None:
        pytest.skip("needs PostgreSQL's programs on this machine")
    with open_sandbox(durable=False) as sandbox:
        if not isinstance(sandbox.event_store_server, PostgresProgram):
            pytest.skip("needs servers made of programs")
        yield sandbox


@pytest.fixture
def placed(servers: Sandbox) -> Iterator[Deployment]:
    with open_deployment(servers, f"set_back_{uuid4().hex[:6]}", partitions=PARTITIONS) as made:
        made.prepare()
        yield made


class Load:
    """Grants one doctor after another to each patient; keeps what was accepted."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.accepted: dict[str, list[str]] = {patient: [] for patient in PATIENTS}

    async def lane(self, patient: str) -> None:
        for number in range(10**6):
            doctor, id_ = f"d-{number}", str(uuid4())
            reply: Json = {}
            while not reply:
                body = body_of("GrantConsent", patient, id_=doctor)
                sent = await self._client.send("GrantConsent", body, message_id=id_)
                with suppress(TimeoutError):
                    reply = await self._client.reply(sent, within=REPLY_WITHIN_S)
            if reply["status"] == "accepted":
                self.accepted[patient].append(doctor)
            await asyncio.sleep(0.1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        lanes = [asyncio.create_task(self.lane(patient)) for patient in PATIENTS]
        try:
            yield
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)

    async def goes_on(self, rounds: int = 5) -> None:
        """Return once each patient has that many grants more."""
        before = {patient: len(doctors) for patient, doctors in self.accepted.items()}

        async def all_have() -> bool:
            return all(len(self.accepted[one]) >= before[one] + rounds for one in PATIENTS)

        await eventually(all_have, within=60)


@pytest.fixture
async def client(placed: Deployment) -> AsyncIterator[Client]:
    async with open_client(placed.rabbitmq_url, PARTITIONS) as connected:
        yield connected


@pytest.fixture
async def load(client: Client) -> Load:
    return Load(client)


async def asked(client: Client, patient: str, doctor: str) -> Json:
    return await client.query(
        "HasConsent",
        patient_id=patient,
        entity_name="doctor",
        entity_id=doctor,
        permission="exams",
    )


async def no_answer_is_wrong(client: Client, deployment: Deployment, load: Load) -> int:
    """Ask about everything that was accepted: each answer is as the log says, or refused."""
    truth = await folded_log(deployment)
    refused = 0
    for patient, doctors in load.accepted.items():
        for doctor in doctors:
            answer = await asked(client, patient, doctor)
            if answer.get("error") == "log_set_back":
                refused += 1
            else:
                assert answer["has_consent"] is ((patient, "doctor", doctor) in truth), answer
    return refused


async def not_in_the_log(deployment: Deployment, load: Load) -> list[str]:
    """List the patients of what was accepted and is no more, for each of these once."""
    truth = await folded_log(deployment)
    return [
        patient
        for patient, doctors in load.accepted.items()
        for doctor in doctors
        if (patient, "doctor", doctor) not in truth
    ]


async def is_whole(deployment: Deployment) -> None:
    """Check positions and versions: none is left out, none comes twice."""
    rows = await fetch(
        deployment.event_store_url,
        """SELECT partition::text AS key, array_agg(position ORDER BY position) AS numbers
             FROM events GROUP BY 1
            UNION ALL
           SELECT stream_id, array_agg(stream_version ORDER BY stream_version)
             FROM events GROUP BY 1""",
    )
    for row in rows:
        assert row["numbers"] == list(range(1, len(row["numbers"]) + 1)), row["key"]


async def decided_and_mended(client: Client, deployment: Deployment, load: Load) -> None:
    """Do what the operators' page says; afterwards every answer is as the log says."""
    accepted = deployment.run("command_service", "accept-log")
    assert accepted.returncode == 0, accepted.stderr
    rebuilt = deployment.run("projection_service", "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    async with load.running():
        await load.goes_on()
    await eventually(lambda: all_projected(deployment), within=60)
    assert await no_answer_is_wrong(client, deployment, load) == 0
    assert await read_model(deployment) == await folded_log(deployment)
    await is_whole(deployment)
    audit = deployment.run("projection_service", "rebuild", "--dry-run")
    assert audit.returncode == 0, audit.stdout + audit.stderr


async def all_projected(deployment: Deployment) -> bool:
    return await projected(deployment) == await log_size(deployment)


async def noticed(deployment: Deployment, load: Load, *workers: Worker) -> None:
    """Wait until each worker says so, and answers are refused of each partition that it befell."""
    (projection,) = (one for one in workers if one.service == "projection_service")

    async def all_say_so() -> bool:
        return all("log_set_back" in worker.get("/health/ready")[1] for worker in workers)

    async def each_is_named() -> bool:
        lost = await not_in_the_log(deployment, load)
        befell = {partition_of(patient, PARTITIONS) for patient in lost}
        named = re.search(r"log of partition ([\d, ]+)", projection.get("/health/ready")[1])
        return named is not None and befell <= {int(one) for one in named[1].split(",")}

    await eventually(all_say_so, within=90)
    await eventually(each_is_named, within=60)


async def says_that_it_was_left(worker: Worker) -> bool:
    _, text = worker.get("/health/ready")
    told = worker.metric("consent_log_set_back")
    return "server was left" in text and "log_set_back" in text and told > 0


async def test_a_failover_to_a_standby_that_was_behind_and_the_old_primary_coming_back(
    servers: Sandbox, placed: Deployment, client: Client, load: Load
) -> None:
    pair = PostgresPair(servers.event_store_server, f"standby_{uuid4().hex[:6]}")
    try:
        await lose_some_and_go_on(pair, placed, client, load)
    finally:
        placed.close()
        if not pair.primary.answers():
            pair.primary.start()
        pair.standby.stop()


async def lose_some_and_go_on(
    pair: PostgresPair, placed: Deployment, client: Client, load: Load
) -> None:
    old_url = placed.event_store_url
    database = old_url.rsplit("/", 1)[1]
    placed.event_store_url = pair.url(database)
    workers = placed.start_both()
    async with load.running():
        await load.goes_on()
        await pair.follows()
        pair.falls_behind()
        await load.goes_on()
        pair.take_over()
        await noticed(placed, load, *workers)
    assert len(await not_in_the_log(placed, load)) > 0
    assert await no_answer_is_wrong(client, placed, load) > 0
    await decided_and_mended(client, placed, load)

    pair.primary.start()  # it takes writes, as if nothing had been
    placed.event_store_url = pair.standby.url(database)
    zombie = replace(placed, event_store_url=old_url, workers=[])
    before = await log_size(zombie)
    left = zombie.start("command_service")
    workers[0].kill()
    try:
        await eventually(lambda: says_that_it_was_left(left), within=60)
        sent = await client.send("GrantConsent", body_of("GrantConsent", PATIENTS[0], id_="d-z"))
        right = placed.start("command_service")
        right.wait_ready()
        assert (await client.reply(sent))["status"] == "accepted"
        assert await log_size(zombie) == before
        await eventually(lambda: all_projected(placed), within=60)
        assert await no_answer_is_wrong(client, placed, load) == 0
    finally:
        zombie.close()


async def test_a_base_backup_that_is_restored(
    servers: Sandbox, placed: Deployment, client: Client, load: Load
) -> None:
    server = servers.event_store_server
    assert isinstance(server, PostgresProgram)
    home, programs = server._home, server._programs  # noqa: SLF001 - for a server like it
    backup = home.path / f"base_{uuid4().hex[:6]}"
    workers = placed.start_both()
    async with load.running():
        await load.goes_on()
        copy(server, backup, home, programs)
        await load.goes_on()
        server.kill()
        put_back(backup, server.data)
        server.start()
        await noticed(placed, load, *workers)
    assert len(await not_in_the_log(placed, load)) > 0
    assert await no_answer_is_wrong(client, placed, load) > 0
    await decided_and_mended(client, placed, load)


def put_back(backup: Path, data: Path) -> None:
    (backup / "standby.signal").unlink()
    shutil.rmtree(data)
    backup.rename(data)


async def test_a_dump_that_is_restored_beneath_the_session_in_which_it_was_made(
    servers: Sandbox, placed: Deployment, client: Client, load: Load
) -> None:
    server = servers.event_store_server
    assert isinstance(server, PostgresProgram)
    home, programs = server._home, server._programs  # noqa: SLF001 - its programs
    dump, url = home.path / f"dump_{uuid4().hex[:6]}", placed.event_store_url
    workers = placed.start_both()
    async with load.running():
        await load.goes_on()
        home.run(programs / "pg_dump", "--format=custom", f"--file={dump}", url)
        await load.goes_on()
        restore = ("--clean", "--if-exists", "--single-transaction", f"--dbname={url}")
        home.run(programs / "pg_restore", *restore, dump)
        await noticed(placed, load, *workers)
    assert len(await not_in_the_log(placed, load)) > 0
    assert await no_answer_is_wrong(client, placed, load) > 0
    await decided_and_mended(client, placed, load)
