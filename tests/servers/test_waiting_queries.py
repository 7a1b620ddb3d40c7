"""Queries that wait for a version: looked up together, run once, and in nobody's way."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from projection_service.answers import version_waits
from projection_service.answers.responder import QueryResponder
from projection_service.log_identity.set_backs import SetBacks
from projection_service.projections.changes import Held
from projection_service.projections.consents import Consent
from projection_service.read_model import ReadModel
from shared.messages import names
from shared.postgres.connection import Pool
from shared.postgres.database import open_pool
from shared.postgres.statements import statement
from shared.rabbitmq.connection import connect
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.telemetry.readiness import Readiness
from shared.values.vocabulary import Grantee
from tests.conftest import PARTITIONS
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

MOST_WAITING: Final = 250
HISTORY: Final = statement("projection_service", "read_history")
VERSIONS: Final = statement("projection_service", "read_versions")
HELD: Final = statement("projection_service", "has_consent")
PATIENCE: Final = "projection_service.answers.responder.WAIT_FOR_VERSION_S"


class Counting:
    """A database that counts the statements it is asked."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.asked: Counter[str] = Counter()

    async def fetch(self, query: str, *arguments: object) -> Any:  # noqa: ANN401 - as asyncpg's
        self.asked[query] += 1
        return await self._pool.fetch(query, *arguments)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else a pool does
        return getattr(self._pool, name)


class Responder:
    """What answers queries in this process, and the database that it asks."""

    def __init__(self, answering: QueryResponder, database: Counting, pool: Pool) -> None:
        self.answering = answering
        self.database = database
        self._pool = pool

    async def project(self, patient_id: str, version: int) -> None:
        """Do as another worker does, which tells nothing of it."""
        await self._pool.execute(
            "INSERT INTO patients VALUES ($1, $2)",
            patient_id,
            version,
        )

    async def looked_up(self, times: int, *, before: int | None = None) -> None:
        """Wait until versions were looked up so often from now on, or since they had been then."""
        if before is None:
            before = self.database.asked[VERSIONS]

        async def has() -> bool:
            return self.database.asked[VERSIONS] >= before + times

        await eventually(has)


@asynccontextmanager
async def answering(deployment: Deployment) -> AsyncIterator[Responder]:
    pool = await open_pool(deployment.read_model_url, name="test", size=4)
    database: Any = Counting(pool)
    try:
        async with connect(deployment.rabbitmq_url, name="test") as broker:
            consumer = Consumer(broker, prefetch=500)
            for queue in (names.QUERIES, names.CHECKS):
                await consumer.open(queue, counts=False, ordered=False)
            replies = await ReplyPublisher.open(broker, deployment.rabbitmq_url, lambda *_: None)
            set_backs = SetBacks(ReadModel(pool), Readiness(), PARTITIONS)
            found = QueryResponder(consumer, replies, database, MOST_WAITING, set_backs)
            tasks = [asyncio.create_task(loop) for loop in found.loops()]
            yield Responder(found, database, pool)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    finally:
        pool.terminate()


@pytest.fixture
async def responder(deployment: Deployment) -> AsyncIterator[Responder]:
    async with answering(deployment) as made:
        yield made


@pytest.fixture
def endless_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give nobody up for the time: what a slow machine takes is no matter then."""
    monkeypatch.setattr(PATIENCE, 600.0)


async def ask(client: Client, patient_id: str, min_version: int) -> str:
    body = {"patient_id": patient_id, "min_version": min_version}
    return await client.send(
        "ConsentHistory", body, exchange="consent.queries", key="ConsentHistory"
    )


@pytest.mark.usefixtures("endless_waits")
async def test_waiting_histories_are_read_once_and_only_versions_are_looked_up_meanwhile(
    responder: Responder, client: Client
) -> None:
    sent = [await ask(client, "p-1", 3) for _ in range(20)]
    await responder.looked_up(times=10)
    assert responder.database.asked[HISTORY] == 0
    await responder.project("p-1", 3)
    replies = [await client.reply(one) for one in sent]
    assert {(one["status"], one["version"]) for one in replies} == {("ok", 3)}
    assert responder.database.asked[HISTORY] <= 2, "all at once, but for some that came later"


@pytest.mark.usefixtures("endless_waits")
async def test_what_this_worker_projects_itself_is_answered_without_a_look(
    responder: Responder, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_waits, "LOOK_AGAIN_S", 60.0)
    sent = await ask(client, "p-1", 3)
    await responder.looked_up(times=1, before=0)
    responder.answering.progressed({"p-1": 2, "p-2": 9})
    responder.answering.progressed({"p-1": 3})
    assert (await client.reply(sent))["status"] == "ok"


@pytest.mark.usefixtures("endless_waits")
async def test_of_whom_this_worker_projects_it_only_listens_for_what_is_to_come(
    responder: Responder, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_waits, "LOOK_AGAIN_S", 60.0)
    responder.answering.projected = {"p-1": 2}.get
    reply = asyncio.create_task(client.reply(await ask(client, "p-1", 3)))

    async def is_answered() -> bool:
        responder.answering.progressed({"p-1": 3})
        return reply.done()

    await eventually(is_answered)
    assert reply.result()["status"] == "ok"
    assert responder.database.asked[VERSIONS] == 0


@pytest.mark.usefixtures("endless_waits")
async def test_what_was_projected_here_before_it_was_asked_for_is_looked_up_at_once(
    responder: Responder, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_waits, "LOOK_AGAIN_S", 60.0)
    responder.answering.projected = {"p-1": 3}.get
    await responder.project("p-1", 3)
    listening = await ask(client, "p-1", 4)
    assert (await client.reply(await ask(client, "p-1", 3)))["status"] == "ok"
    responder.answering.progressed({"p-1": 4})
    assert (await client.reply(listening))["status"] == "ok"


async def check(client: Client, min_version: int) -> str:
    body = {
        "patient_id": "p-1",
        "entity_name": "doctor",
        "entity_id": "d-1",
        "permission": "exams",
        "min_version": min_version,
    }
    return await client.send("HasConsent", body, exchange="consent.queries", key="HasConsent")


@pytest.mark.usefixtures("endless_waits")
async def test_a_check_that_waited_for_what_is_projected_here_is_answered_from_memory(
    responder: Responder, client: Client
) -> None:
    responder.answering.projected = {"p-1": 2}.get
    held = Held(3, Consent(frozenset({"exams"})))
    who = ("p-1", Grantee("doctor", "d-1"))
    responder.answering.recall = lambda *asked: held if asked == who else None
    reply = asyncio.create_task(client.reply(await check(client, 3)))

    async def is_answered() -> bool:
        responder.answering.progressed({"p-1": 3})
        return reply.done()

    await eventually(is_answered)
    assert (reply.result()["has_consent"], reply.result()["version"]) == (True, 3)
    assert responder.database.asked[HELD] == 0


async def test_a_check_that_came_after_what_it_asks_for_reads_it_by_one_statement(
    responder: Responder, client: Client
) -> None:
    responder.answering.projected = {"p-1": 3}.get
    await responder.project("p-1", 3)
    answer = await client.reply(await check(client, 3))
    assert (answer["has_consent"], answer["version"]) == (False, 3)
    assert (responder.database.asked[HELD], responder.database.asked[VERSIONS]) == (1, 0)


@pytest.mark.usefixtures("endless_waits")
async def test_a_check_waits_for_what_the_database_has_lost_though_it_was_projected_here(
    responder: Responder, client: Client
) -> None:
    responder.answering.projected = {"p-1": 3}.get
    sent = await check(client, 3)
    await responder.looked_up(times=3)
    await responder.project("p-1", 3)
    assert (await client.reply(sent))["version"] == 3


@pytest.mark.usefixtures("endless_waits")
async def test_who_is_projected_by_another_worker_by_now_is_looked_up_in_the_end(
    responder: Responder, client: Client
) -> None:
    responder.answering.projected = {"p-1": 2}.get
    sent = await ask(client, "p-1", 3)
    await responder.project("p-1", 3)
    assert (await client.reply(sent))["status"] == "ok"


@pytest.mark.usefixtures("endless_waits")
async def test_who_crowds_in_for_one_patient_gives_way_and_the_others_wait_on(
    responder: Responder, client: Client
) -> None:
    honest = await ask(client, "p-honest", 1)
    await responder.looked_up(times=1)
    crowd = [await ask(client, "p-crowd", 10**9) for _ in range(MOST_WAITING + 50)]
    early = [await client.reply(one) for one in crowd[-50:]]
    assert {one["error"] for one in early} == {"not_yet_projected"}
    await responder.project("p-honest", 1)
    assert (await client.reply(honest))["status"] == "ok"


@pytest.mark.usefixtures("endless_waits")
async def test_a_crowd_over_many_patients_does_not_push_out_who_waited_before(
    responder: Responder, client: Client
) -> None:
    honest = [await ask(client, f"p-honest-{number}", 1) for number in range(20)]
    await responder.looked_up(times=1)
    crowd = [await ask(client, f"p-{number}", 10**9) for number in range(MOST_WAITING)]
    early = [await client.reply(one) for one in crowd[-20:]]
    assert {one["error"] for one in early} == {"not_yet_projected"}
    for number in range(20):
        await responder.project(f"p-honest-{number}", 1)
    assert {(await client.reply(one))["status"] for one in honest} == {"ok"}


@pytest.mark.usefixtures("endless_waits")
async def test_those_that_wait_hold_up_no_other_query(responder: Responder, client: Client) -> None:
    for _ in range(MOST_WAITING):
        await ask(client, "p-1", 10**9)
    await responder.looked_up(times=3)
    statements = responder.database.asked.total()
    held = await client.query(
        "HasConsent", patient_id="p-1", entity_name="doctor", entity_id="d-1", permission="exams"
    )
    assert held["has_consent"] is False
    assert responder.database.asked[HISTORY] == 0
    assert responder.database.asked.total() > statements


async def test_a_version_that_does_not_come_is_given_up_with_the_one_that_is_there(
    responder: Responder, client: Client
) -> None:
    await responder.project("p-1", 2)
    answer = await client.reply(await ask(client, "p-1", 3))
    assert (answer["error"], answer["version"]) == ("not_yet_projected", 2)
    assert json.dumps(answer).count("p-1") == 0
