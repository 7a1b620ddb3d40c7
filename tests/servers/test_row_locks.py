"""A row of the read model that somebody has locked stops its own partition, and nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

import asyncpg
import pytest

from projection_service.projections.changes import Changes, Move
from projection_service.read_model import ReadModel
from shared.errors import Fenced, RowLocked
from shared.postgres.connection import Connection, Pool
from shared.postgres.statements import statement
from shared.values.partition import partition_of
from tests.conftest import PARTITIONS
from tests.support.amqp import Client
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch, folded_log, projected, read_model

pytestmark = pytest.mark.timeout(180)

ONE: Final = Changes(moves={0: Move(1, 0, 1)})
BOTH: Final = Changes(moves={0: Move(1, 0, 1), 1: Move(1, 0, 1)})
WAITING: Final = "SELECT count(*) FROM pg_locks WHERE NOT granted"
RENEWED: Final = "SELECT min(leased_until) > now() FROM partitions"


def patients_of(partition: int, how_many: int) -> list[str]:
    ids = (f"p-{number}" for number in count())
    theirs = (one for one in ids if partition_of(one, PARTITIONS) == partition)
    return [next(theirs) for _ in range(how_many)]


@asynccontextmanager
async def holding(url: str, lock: str, *arguments: object) -> AsyncIterator[Connection]:
    """Hold locks, as somebody's forgotten transaction would."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(lock, *arguments)
            yield connection
    finally:
        await connection.close()


async def what_is_locked(worker: Worker) -> str:
    _, body = worker.get("/health/ready")
    troubles = json.loads(body).get("troubles", ())
    return "".join(one["reason"] for one in troubles if one["missing"] == "row_locked")


async def epochs(url: str) -> list[int]:
    return [row["epoch"] for row in await fetch(url, "SELECT epoch FROM partitions ORDER BY 1")]


async def test_a_locked_row_stops_its_partition_alone_until_it_is_let_go(
    deployment: Deployment, client: Client
) -> None:
    _, worker = deployment.start_both()
    locked, beside = patients_of(0, 2)
    others = [patients_of(number, 1)[0] for number in range(1, PARTITIONS)]
    for patient in (locked, beside, *others):
        await client.command("GrantConsent", patient)
    await eventually(lambda: all_are_projected(deployment, PARTITIONS + 1))
    before = await epochs(deployment.read_model_url)
    lock = "SELECT FROM patient_consent WHERE patient_id = $1 FOR UPDATE"
    async with holding(deployment.read_model_url, lock, locked) as somebody:
        since = await somebody.fetchval("SELECT now()")
        revoked = await asyncio.gather(
            *(client.command("RevokeConsent", patient) for patient in (locked, beside, *others))
        )
        for outcome in revoked[2:]:  # all in one batch, maybe, with the one that can't be applied
            await seen(client, outcome)
        assert "partition 0:" in await eventually(lambda: what_is_locked(worker))

        async def the_leases_would_have_run_out() -> bool:
            sql = "SELECT clock_timestamp() > $1::timestamptz + interval '7 s'"
            return bool(await somebody.fetchval(sql, since))

        await eventually(the_leases_would_have_run_out)
        behind = await client.command("GrantConsent", beside, target="er_visits")
        await seen(client, await client.command("GrantConsent", others[0], target="er_visits"))
        assert (await fetch(deployment.read_model_url, RENEWED))[0][0]
        assert await projected(deployment) == 2 * PARTITIONS + 1
    for outcome in (*revoked[:2], behind):
        await seen(client, outcome)
    assert await read_model(deployment) == await folded_log(deployment)
    assert await epochs(deployment.read_model_url) == before
    await eventually(lambda: is_ready(worker))


async def seen(client: Client, outcome: dict[str, object]) -> None:
    """Wait until a command's outcome is in the read model."""
    patient, version = outcome["patient_id"], outcome["version"]
    listed = await client.query("ListConsents", patient_id=patient, min_version=version)
    assert listed["version"] >= version


async def all_are_projected(deployment: Deployment, events: int) -> bool:
    return await projected(deployment) == events


async def is_ready(worker: Worker) -> bool:
    return worker.get("/health/ready")[0] == 200


async def test_a_worker_that_is_stopped_while_a_row_is_locked_drains(
    deployment: Deployment, client: Client
) -> None:
    _, worker = deployment.start_both()
    (locked,) = patients_of(0, 1)
    await client.command("GrantConsent", locked)
    await eventually(lambda: all_are_projected(deployment, 1))
    lock = "SELECT FROM patient_consent FOR UPDATE"
    async with holding(deployment.read_model_url, lock):
        await client.command("RevokeConsent", locked)
        await eventually(lambda: what_is_locked(worker))
        assert worker.stop() == 0
    deployment.start("projection_service").wait_ready()
    await eventually(lambda: all_are_projected(deployment, 2))
    assert await read_model(deployment) == {}


@pytest.fixture
async def model(read_model_pool: Pool) -> ReadModel:
    """Give a read model whose partitions are owned, and nothing is projected."""
    await read_model_pool.execute("UPDATE partitions SET owner = 'me', epoch = 1")
    found = ReadModel(read_model_pool)
    for partition in (0, 1):
        await found.open_checkpoint(partition)
    return found


async def test_leases_are_renewed_while_what_is_projected_waits(
    model: ReadModel, read_model_pool: Pool, read_model_url: str
) -> None:
    lock = "SELECT FROM checkpoints WHERE partition = 0 FOR UPDATE"
    async with holding(read_model_url, lock), asyncio.timeout(60):
        projecting = asyncio.create_task(insistent(model, ONE))
        await eventually(lambda: read_model_pool.fetchval(WAITING))
        keep = statement("shared.postgres", "keep_leases")
        async with read_model_pool.acquire() as keeper:
            await keeper.execute("SET lock_timeout = 1")  # it waits for nothing
            kept = await keeper.fetch(keep, "me", 60.0, True, 1)
        assert len(kept) == PARTITIONS
        assert not projecting.done()
    await projecting
    assert (await model.open_checkpoint(0)).position == 1


async def insistent(model: ReadModel, changes: Changes) -> None:
    """Project, however long a row stays locked."""
    while True:
        try:
            return await model.project(changes)
        except RowLocked:
            continue


@pytest.mark.parametrize("take", ["fence_projector", "take_partitions"])
async def test_who_was_taken_over_from_after_it_began_to_look_projects_nothing(
    model: ReadModel, read_model_pool: Pool, read_model_url: str, take: str
) -> None:
    """The first partition has it wait, the second one is another's when it comes to that."""
    await read_model_pool.execute("UPDATE partitions SET owner = NULL WHERE partition = 1")
    package, arguments = TAKES[take]
    lock = "SELECT FROM checkpoints WHERE partition = 0 FOR UPDATE"
    async with holding(read_model_url, lock):
        projecting = asyncio.create_task(insistent(model, BOTH))
        await eventually(lambda: read_model_pool.fetchval(WAITING), every=0.01)
        keep = statement("shared.postgres", "keep_leases")
        await read_model_pool.execute(keep, "me", 60.0, True, 1)
        await read_model_pool.execute(statement(package, take), *arguments)
        await read_model_pool.execute(keep, "other", 60.0, True, 2)
    with pytest.raises(Fenced):
        await projecting
    assert [(await model.open_checkpoint(number)).position for number in (0, 1)] == [0, 0]


TAKES: Final[dict[str, tuple[str, Sequence[object]]]] = {
    "fence_projector": ("projection_service", [1]),
    "take_partitions": ("shared.postgres", ["other", 60.0, 1]),
}
