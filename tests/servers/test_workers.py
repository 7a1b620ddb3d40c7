"""Workers as processes: what holds when they stop, die, start late, or were set up wrongly."""

import asyncio
import json
import os
import signal
from collections import defaultdict
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from command_service.cli import app
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, body_of
from tests.support.deployment import SERVICES, Deployment
from tests.support.eventually import eventually
from tests.support.facts import (
    TARGETS,
    fetch,
    flood,
    folded_log,
    log_size,
    projected,
    read_model,
    replies,
)


async def test_a_command_worker_killed_under_load_loses_and_doubles_nothing(
    deployment: Deployment, client: Client
) -> None:
    seen: list[Any] = []
    await client.subscribe("#", seen.append)
    deployment.start("command_service").wait_ready()
    sent = await flood(client, patients=20)
    await eventually(lambda: log_size(deployment))
    deployment.workers[0].kill()
    deployment.start("command_service").wait_ready()

    outcomes = await replies(client, sent)
    assert {one["status"] for one in outcomes} == {"accepted"}
    assert await log_size(deployment) == len(sent)

    async def all_seen() -> bool:
        return len({message.message_id for message in seen}) == len(sent)

    await eventually(all_seen)
    positions: dict[int, list[int]] = defaultdict(list)
    for message in seen:
        event = json.loads(message.body)
        if event["position"] not in positions[event["partition"]]:  # repeats are allowed
            positions[event["partition"]].append(event["position"])
    for found in positions.values():
        assert found == list(range(1, len(found) + 1))


async def test_a_worker_publishes_first_what_the_log_has_and_the_exchange_has_not(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("command_service").wait_ready()
    await replies(client, await flood(client, patients=5))
    assert deployment.workers[0].stop() == 0
    connection = await asyncpg.connect(deployment.event_store_url)
    await connection.execute("UPDATE partitions SET published_position = 0")
    await connection.close()

    seen: list[Any] = []
    await client.subscribe("#", seen.append)
    deployment.start("command_service").wait_ready()
    accepted = await client.command("GrantConsent", "p-0", id_="d-new")

    async def newest_seen() -> bool:
        return any(message.message_id == accepted["events"][0]["id"] for message in seen)

    await eventually(newest_seen)
    of_partition = dict.fromkeys(  # repeats are allowed
        event["position"]
        for event in (json.loads(message.body) for message in seen)
        if event["partition"] == accepted["partition"]
    )
    assert list(of_partition) == list(range(1, accepted["events"][0]["position"] + 1))


async def test_sigterm_under_load_drains_answers_what_was_done_and_leaves_the_rest(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("command_service").wait_ready()
    sent = await flood(client, patients=30)
    await eventually(lambda: log_size(deployment))
    assert deployment.workers[0].stop() == 0
    done = await log_size(deployment)
    head = "SELECT sum(position)::int AS head, sum(published_position)::int AS published"
    (row,) = await fetch(deployment.event_store_url, f"{head} FROM partitions")
    assert row["head"] == row["published"] == done

    deployment.start("command_service").wait_ready()
    outcomes = await replies(client, sent)
    assert {one["status"] for one in outcomes} == {"accepted"}
    assert await log_size(deployment) == len(sent)


async def test_a_second_signal_leaves_at_once_with_another_exit_code(
    deployment: Deployment, client: Client, sandbox: Sandbox
) -> None:
    worker = deployment.start("command_service")
    worker.wait_ready()
    connection = await asyncpg.connect(deployment.event_store_url)
    async with connection.transaction():  # what is in hand can't be finished: its rows are locked
        await connection.execute("SELECT FROM partitions FOR UPDATE")
        await client.send("GrantConsent", body_of("GrantConsent", "p-1"))
        waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"
        await eventually(lambda: connection.fetchval(waiting))
        worker.send(signal.SIGTERM)
        await eventually(lambda: _logged(worker.log, "worker.draining"))
        worker.send(signal.SIGTERM)
        code = await asyncio.to_thread(worker.process.wait, 30)
    await connection.close()
    assert code == 3
    deployment.start("command_service").wait_ready()
    accepted = await client.command("GrantConsent", "p-1", id_="d-2")
    assert accepted["version"] == 2


async def test_a_signal_after_the_drain_leaves_the_good_exit_code(deployment: Deployment) -> None:
    worker = deployment.start("projection_service")
    worker.wait_ready()
    worker.send(signal.SIGTERM)
    await eventually(lambda: _logged(worker.log, "worker.stopped"), every=0.002)
    while worker.process.poll() is None:
        worker.send(signal.SIGTERM)
        await asyncio.sleep(0.001)
    assert worker.process.returncode == 0


@pytest.mark.timeout(180)
async def test_a_worker_whose_drain_time_runs_out_leaves_and_nothing_is_lost(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service")
    worker.wait_ready()
    connection = await asyncpg.connect(deployment.event_store_url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE events IN SHARE MODE")
        sent = await flood(client, patients=20)
        worker.send(signal.SIGTERM)
        code = await asyncio.to_thread(worker.process.wait, 60)
    await connection.close()
    assert code == 3
    assert "the drain time ran out" in worker.log

    deployment.start_both()
    outcomes = await replies(client, sent)
    assert {one["status"] for one in outcomes} == {"accepted"}
    assert await log_size(deployment) == len(sent)

    async def all_projected() -> bool:
        return await projected(deployment) == len(sent)

    await eventually(all_projected, within=30)
    assert await read_model(deployment) == await folded_log(deployment)


async def _logged(log: str, line: str) -> bool:
    return line in log


@pytest.fixture
async def old_log(deployment: Deployment, client: Client, sandbox: Sandbox) -> int:
    """Give the size of a log of which nothing is projected, nor in any queue."""
    deployment.start("command_service").wait_ready()
    sent = await flood(client, patients=20)
    await replies(client, sent)
    assert deployment.workers[0].stop() == 0
    vhost = deployment.rabbitmq_url.rsplit("/", 1)[1]
    for number in range(PARTITIONS):
        path = f"/queues/{vhost}/consent.projection.{number}/contents"
        sandbox.broker.api("DELETE", path)
    return len(sent)


async def test_a_projector_started_late_catches_up_with_an_old_log_and_empty_queues(
    deployment: Deployment, old_log: int
) -> None:
    deployment.start_both()

    async def caught_up() -> bool:
        return await projected(deployment) == old_log

    await eventually(caught_up)
    assert await read_model(deployment) == await folded_log(deployment)


async def test_partitions_that_wait_for_the_read_model_hold_up_no_others(
    deployment: Deployment, client: Client, old_log: int
) -> None:
    firsts = await fetch(
        deployment.event_store_url,
        "SELECT DISTINCT ON (partition) e.stream_id, p.position"
        "  FROM events e JOIN partitions p USING (partition) ORDER BY partition",
    )
    other, waiting = firsts[0]["stream_id"], firsts[1:3]
    of_others: int = old_log - sum(row["position"] for row in waiting)
    somebody = await asyncpg.connect(deployment.read_model_url)
    try:
        await somebody.execute("BEGIN")
        for row in waiting:
            await somebody.execute("INSERT INTO patients VALUES ($1, 1)", row["stream_id"])
        deployment.start_both()

        async def all_others_caught_up() -> bool:
            return await projected(deployment) == of_others

        await eventually(all_others_caught_up)
        granted = await client.command("GrantConsent", other, id_="d-new")
        listed = await client.query(
            "ListConsents", patient_id=other, min_version=granted["version"]
        )
        assert "d-new" in {one["entity_id"] for one in listed["consents"]}
    finally:
        await somebody.close()

    async def caught_up() -> bool:
        return await projected(deployment) == old_log + 1

    await eventually(caught_up)
    assert await read_model(deployment) == await folded_log(deployment)


async def test_a_gap_is_filled_from_the_log_before_anything_later(
    deployment: Deployment, client: Client, sandbox: Sandbox
) -> None:
    deployment.start_both()
    first = await client.command("GrantConsent", "p-1", target="exams")
    number = first["partition"]
    queue = await client.channel.get_queue(f"consent.projection.{number}", ensure=False)
    await queue.unbind("consent.events", f"*.*.*.{number}")
    # The events must reach some queue, or the command worker would keep them unpublished.
    await client.subscribe("#", lambda _: None)
    missed = [await client.command("GrantConsent", "p-1", target=target) for target in TARGETS[1:]]
    missed.append(await client.command("RevokeConsent", "p-1", target="exams"))
    await queue.bind("consent.events", f"*.*.*.{number}")
    last = await client.command("GrantConsent", "p-1", id_="d-2")

    listed = await client.query("ListConsents", patient_id="p-1", min_version=last["version"])
    assert listed["version"] == last["version"] == 6
    assert {one["entity_id"]: one["permissions"] for one in listed["consents"]} == {
        "d-1": ["conditions", "consultations", "er_visits"],
        "d-2": ["exams"],
    }
    await deployment.workers[1].logs("gap.found")


async def test_a_projector_killed_under_load_applies_each_event_once(
    deployment: Deployment, client: Client
) -> None:
    deployment.start_both()
    sent = await flood(client, patients=20)
    await eventually(lambda: projected(deployment))
    deployment.workers[1].kill()
    deployment.start("projection_service").wait_ready()
    await replies(client, sent)

    async def caught_up() -> bool:
        return await projected(deployment) == len(sent)

    await eventually(caught_up)
    assert await read_model(deployment) == await folded_log(deployment)
    versions = await fetch(deployment.read_model_url, "SELECT * FROM patients")
    assert {row["version"] for row in versions} == {len(sent) // 20}


async def test_two_workers_of_each_kind_share_the_work_and_agree(
    deployment: Deployment, client: Client
) -> None:
    for service in ("command_service", "projection_service"):
        for _ in range(2):
            deployment.start(service)

    for worker in deployment.workers:
        worker.wait_ready()

    async def shared_out() -> bool:
        owned = [worker.metric("consent_partition_owned") for worker in deployment.workers]
        return owned == [PARTITIONS / 2] * 4

    await eventually(shared_out)
    sent = await flood(client, patients=20)
    await replies(client, sent)

    async def caught_up() -> bool:
        return await projected(deployment) == len(sent)

    await eventually(caught_up)
    assert await read_model(deployment) == await folded_log(deployment)


async def test_a_worker_with_another_number_of_partitions_refuses_to_start(
    deployment: Deployment,
) -> None:
    for service in ("command_service", "projection_service"):
        done = deployment.run(service, "run", CONSENT_PARTITIONS="16")
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1] == (
            f"error: CONSENT_PARTITIONS is 16, but this deployment was made with {PARTITIONS}: "
            f"set CONSENT_PARTITIONS={PARTITIONS}"
        )


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("RABBITMQ_URL", "", "RABBITMQ_URL is not set: give it a value like amqp://"),
        ("RABBITMQ_URL", "http://x", "RABBITMQ_URL is wrong: must be a URL like amqp://"),
        ("RABBITMQ_URL", "amqps://h/?no_verify_ssl=1", "RABBITMQ_URL is wrong: no_verify_ssl"),
        ("EVENT_STORE_URL", "x", "EVENT_STORE_URL is wrong: must be a URL like postgresql://"),
        (
            "EVENT_STORE_URL",
            "postgresql://h/x?target_session_attrs=best",
            "EVENT_STORE_URL is wrong: target_session_attrs must be one of any, primary",
        ),
        ("CONSENT_PARTITIONS", "0", "CONSENT_PARTITIONS is wrong: "),
        ("HTTP_PORT", "70000", "HTTP_PORT is wrong: "),
        ("LOG_LEVEL", "loud", "LOG_LEVEL is wrong: "),
    ],
)
def test_a_wrong_setting_is_one_clear_line_and_exit_code_2(
    setting: str, value: str, complaint: str
) -> None:
    good = {"RABBITMQ_URL": "amqp://localhost/", "EVENT_STORE_URL": "postgresql://localhost/"}
    done = CliRunner().invoke(app, ["run"], env={**good, setting: value})
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith(f"error: {complaint}")


def test_a_worker_does_not_wait_where_its_driver_can_not_take_the_url(
    deployment: Deployment,
) -> None:
    done = deployment.run("command_service", "run", EVENT_STORE_URL="postgresql://h/x?sslmode=some")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: EVENT_STORE_URL is wrong: `sslmode` parameter must be one of")


async def test_a_worker_without_a_topology_says_what_is_missing_and_begins_when_it_is_there(
    sandbox: Sandbox, deployment: Deployment
) -> None:
    bare = Deployment(
        rabbitmq_url=sandbox.broker.create_vhost("bare"),
        event_store_url=deployment.event_store_url,
        read_model_url=deployment.read_model_url,
        partitions=PARTITIONS,
        folder=deployment.folder,
        workers=deployment.workers,
    )
    worker = bare.start("command_service")

    async def said() -> bool:
        status, body = worker.get("/health/ready")
        return status == 503 and "run `python -m command_service topology`" in body

    await eventually(said)
    assert bare.run("command_service", "topology").returncode == 0
    worker.wait_ready()
    assert worker.get("/health/live")[0] == 200
    worker.stop()
    sandbox.broker.delete_vhost("bare")


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has this policy")
def test_a_worker_that_is_woken_interrupts_nobody(deployment: Deployment) -> None:
    for service in SERVICES:
        worker = deployment.start(service)
        worker.wait_ready()
        assert os.sched_getscheduler(worker.process.pid) == os.SCHED_BATCH
