"""Checks have a queue of their own, and whoever answers may be as many as you like."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from tests.sandbox import Sandbox
from tests.support.amqp import Client, open_client
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually

SPANS: Final = 500
HISTORIES: Final = 1_000
WRITE: Final = """
INSERT INTO consent_history (patient_id, entity_name, entity_id, record_type, kind, began_version,
                             began_at, began_command, began_event)
SELECT 'p-long', 'doctor', 'd-' || n, 'exams', 'period', n, now(), gen_random_uuid(),
       gen_random_uuid()
  FROM generate_series(1, $1::integer) AS n
"""
ACTOR: Final = {"entity_name": "doctor", "entity_id": "d-1"}
CHECK: Final = {"patient_id": "p-1", **ACTOR}


async def test_a_thousand_histories_do_not_delay_a_check(
    deployment: Deployment, client: Client
) -> None:
    connection = await asyncpg.connect(deployment.read_model_url)
    await connection.execute(WRITE, SPANS)
    await connection.close()
    projection = deployment.start("projection_service")
    projection.wait_ready()

    def answered() -> float:
        return projection.metric("consent_queries_total", 'type="ConsentHistory"')

    body = {"patient_id": "p-long"}
    histories = [
        client.send("ConsentHistory", body, exchange="consent.queries", key="ConsentHistory")
        for _ in range(HISTORIES)
    ]
    sent = await asyncio.gather(*histories)
    assert (await client.query("HasConsent", **CHECK))["has_consent"] is False
    assert answered() < HISTORIES, "the check waited for the histories"
    assert len((await client.reply(sent[-1], within=120))["periods"]) == SPANS


async def test_checks_that_wait_for_a_version_hold_up_no_other(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("projection_service").wait_ready()
    for _ in range(400):
        await client.send(
            "HasConsent",
            CHECK | {"min_version": 9},
            exchange="consent.queries",
            key="HasConsent",
        )
    held = await client.reply(
        await client.send("HasConsent", CHECK, exchange="consent.queries", key="HasConsent"),
        within=4,
    )
    assert held["has_consent"] is False


async def test_more_processes_answer_than_there_are_partitions_and_each_waits_right(
    sandbox: Sandbox,
) -> None:
    with open_deployment(sandbox, "answering", partitions=1) as deployment:
        deployment.prepare()
        deployment.start("command_service").wait_ready()
        workers = [deployment.start("projection_service") for _ in range(3)]
        for worker in workers:
            worker.wait_ready()
        async with open_client(deployment.rabbitmq_url, 1) as client:
            asked = 0

            async def all_have_answered() -> bool:
                nonlocal asked
                asked += 1
                granted = await client.command("GrantConsent", f"p-{asked}")
                held = await client.query_once(
                    "HasConsent",
                    patient_id=f"p-{asked}",
                    entity_name="doctor",
                    entity_id="d-1",
                    permission="exams",
                    min_version=granted["version"],
                )
                assert held["has_consent"] is True, held
                return all(
                    worker.metric("consent_questions_total", 'answer="yes"') for worker in workers
                )

            await eventually(all_have_answered, within=60)
            owners = [worker.metric("consent_partition_owned") for worker in workers]
            assert sorted(owners) == [0, 0, 1]


async def test_a_check_that_a_dead_worker_had_in_hand_is_answered_by_another(
    deployment: Deployment, client: Client
) -> None:
    first = deployment.start("projection_service")
    first.wait_ready()
    body = {"questions": [{"patient_id": "p-1", "actors": [ACTOR], "min_version": 1}]}
    sent = await client.send("CheckConsents", body, exchange="consent.queries", key="CheckConsents")

    async def taken() -> bool:
        return await client.length("consent.checks") == 0

    await eventually(taken)
    second = deployment.start("projection_service")
    second.wait_ready()
    first.kill()
    (answer,) = (await client.reply(sent))["answers"]
    assert answer["error"] == "not_yet_projected"


async def test_an_end_counts_to_the_microsecond_in_many_questions_too(
    deployment: Deployment, client: Client
) -> None:
    deployment.start_both()
    end = datetime.now(UTC) + timedelta(days=1)
    for doctor, expires_at in (("d-1", end), ("d-2", end + timedelta(days=1)), ("d-3", None)):
        command = {"patient_id": "p-1", "to_entity": "doctor", "to_id": doctor, "target": "exams"}
        if expires_at:
            command["expires_at"] = expires_at.isoformat()
        outcome = await client.reply(await client.send("GrantConsent", command))
        assert outcome["status"] == "accepted", outcome

    def question(*doctors: str, at: datetime | None = None) -> dict[str, object]:
        actors = [{"entity_name": "doctor", "entity_id": doctor} for doctor in doctors]
        asked = {"patient_id": "p-1", "actors": actors, "permission": "exams", "min_version": 3}
        return asked | ({"at": at.isoformat()} if at else {})

    instant = timedelta(microseconds=1)
    answer = await client.query(
        "CheckConsents",
        questions=[
            question("d-1"),
            question("d-1", "d-2"),
            question("d-1", "d-2", "d-3"),
            question("d-1", at=end - instant),
            question("d-1", at=end),
            question("d-1", "d-2", at=end),
        ],
    )
    one, two, three, before, over, other = answer["answers"]
    written = end.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert (one["valid_until"], one["basis"][0]["until"]) == (written, written)
    assert (two["basis"][0]["entity_id"], two["valid_until"] > written) == ("d-2", True)
    assert (three["basis"][0]["entity_id"], "valid_until" in three) == ("d-3", False)
    assert (before["has_consent"], over["has_consent"]) == (True, False)
    assert "valid_until" not in over
    assert over["basis"] == []
    assert (other["has_consent"], other["basis"][0]["entity_id"]) == (True, "d-2")


async def test_a_consent_that_ended_is_a_no_in_the_same_bytes_while_nobody_records_it(
    deployment: Deployment, client: Client
) -> None:
    command, _ = deployment.start_both()
    end = datetime.now(UTC) + timedelta(seconds=5)
    body = {"patient_id": "p-1", "to_entity": "doctor", "to_id": "d-1", "target": "exams"}
    sent = await client.send("GrantConsent", body | {"expires_at": end.isoformat()})
    assert (await client.reply(sent))["status"] == "accepted"
    command.kill()

    def ask(doctor: str) -> dict[str, object]:
        actor = {"entity_name": "doctor", "entity_id": doctor}
        return {"patient_id": "p-1", "actors": [actor], "permission": "exams", "min_version": 1}

    async def ended() -> bool:
        answer = await client.query("CheckConsents", questions=[ask("d-1"), ask("d-never")])
        one, never = answer["answers"]
        return bool(one == never)

    assert not await ended() or datetime.now(UTC) > end
    await eventually(ended)
    assert datetime.now(UTC) >= end
