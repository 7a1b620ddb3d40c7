"""Repeated commands, in batches of every size: one decision each, and the same reply."""

from uuid import uuid4

import pytest

from command_service.path.command_path import CHECK_RECEIPTS_ABOVE
from command_service.publisher import MARK_AFTER
from tests.sandbox import Sandbox
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch, log_size, replies


async def send(client: Client, patient: str, message_id: str, doctor: str = "d-1") -> str:
    body = body_of("GrantConsent", patient, id_=doctor)
    return await client.send("GrantConsent", body, message_id=message_id)


@pytest.mark.parametrize("beside", [0, CHECK_RECEIPTS_ABOVE // 2, 5 * CHECK_RECEIPTS_ABOVE])
async def test_a_repeat_is_told_the_first_outcome_and_costs_no_other_command(
    deployment: Deployment, client: Client, beside: int
) -> None:
    worker = deployment.start("command_service")
    worker.wait_ready()
    accepted, refused = str(uuid4()), str(uuid4())
    first = await replies(
        client, [await send(client, "p-1", accepted), await send(client, "p-1", refused)]
    )
    assert [one["status"] for one in first] == ["accepted", "rejected"]
    assert worker.stop() == 0

    others = [await send(client, f"p-{n}", str(uuid4()), "d-2") for n in range(beside)]
    again = [await send(client, "p-1", accepted), await send(client, "p-1", refused)]
    deployment.start("command_service").wait_ready()
    assert await replies(client, again) == first
    assert {one["status"] for one in await replies(client, others)} <= {"accepted"}
    assert await log_size(deployment) == 1 + beside


async def test_an_id_that_was_used_for_another_patient_is_a_conflict_for_one_alone_too(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("command_service").wait_ready()
    command_id = str(uuid4())
    patients = [f"p-{number}" for number in range(20)]
    outcomes = [await client.reply(await send(client, patient, command_id)) for patient in patients]
    first, *later = outcomes
    assert first["status"] == "accepted"
    assert {one["error"] for one in later} == {"command_id_conflict"}
    assert await log_size(deployment) == 1


async def waiting(client: Client, deployment: Deployment) -> int:
    """Count the commands that the queues hold for the next worker."""
    queues = [f"consent.commands.{number}" for number in range(deployment.partitions)]
    return sum([await client.length(queue) for queue in queues])


async def test_what_was_answered_is_acknowledged_on_leaving_and_soon_without_it(
    deployment: Deployment, client: Client, sandbox: Sandbox
) -> None:
    worker = deployment.start("command_service")
    worker.wait_ready()
    first = await client.command("GrantConsent", "p-1")
    assert worker.stop() == 0
    assert await waiting(client, deployment) == 0, "nothing comes back after an orderly stop"

    worker = deployment.start("command_service")
    worker.wait_ready()
    second = await client.command("GrantConsent", "p-2")
    assert second["partition"] != first["partition"]
    queue = f"consent.commands.{second['partition']}"
    vhost = deployment.rabbitmq_url.rpartition("/")[2]

    async def acknowledged() -> bool:
        found = sandbox.broker.api("GET", f"/queues/{vhost}/{queue}")
        return bool(found.get("message_stats", {}).get("ack"))

    await eventually(acknowledged)
    worker.kill()
    await eventually(lambda: no_consumer(client, queue))
    assert await waiting(client, deployment) == 0, "nor after a death that came later"


SELDOM = """
from command_service import publisher
publisher.MARK_EVERY_S = 3600
from command_service.cli import app
app(["run"])
"""


async def published(deployment: Deployment) -> int:
    """Count the events of which the database knows that the broker has them."""
    sql = "SELECT sum(published_position)::int AS all FROM partitions"
    (row,) = await fetch(deployment.event_store_url, sql)
    return int(row["all"])


async def test_what_was_published_is_remembered_by_the_next_append(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("command_service", program=("-c", SELDOM)).wait_ready()
    for number in range(50):  # its confirm may come after the next command or two
        await client.command("GrantConsent", "p-1", id_=f"d-{number}")
        if await published(deployment):
            return
    pytest.fail("nothing is remembered")


async def test_a_backlog_that_was_published_is_remembered_without_waiting_for_the_moment(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service")
    worker.wait_ready()
    sent = [await send(client, f"p-{n}", str(uuid4())) for n in range(MARK_AFTER)]
    assert {one["status"] for one in await replies(client, sent)} == {"accepted"}
    assert worker.stop() == 0
    await fetch(deployment.event_store_url, "UPDATE partitions SET published_position = 0")
    deployment.start("command_service", program=("-c", SELDOM)).wait_ready()

    async def all_are() -> bool:
        return await published(deployment) == MARK_AFTER

    await eventually(all_are)


async def no_consumer(client: Client, queue: str) -> bool:
    found = await client.channel.declare_queue(queue, passive=True)
    return not found.declaration_result.consumer_count
