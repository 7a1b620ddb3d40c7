"""What would go on without end is bounded, and named: a conflict, a log that ends too early."""

import asyncio

from tests.conftest import PARTITIONS
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch, replies

ALWAYS_TOO_LATE = """
from command_service.store import event_store
from shared.errors import Conflict
append = event_store.EventStore.append
async def conflicting(store, decisions, epochs, **options):
    if any(one.received.command.patient_id == "p-odd" for one in decisions):
        raise Conflict("somebody appended first")
    return await append(store, decisions, epochs, **options)
event_store.EventStore.append = conflicting
from command_service.cli import app
app(["run"])
"""


async def test_a_command_that_always_comes_too_late_is_set_aside_and_holds_nobody_up(
    deployment: Deployment, client: Client
) -> None:
    odd = await client.send("GrantConsent", body_of("GrantConsent", "p-odd"))
    innocent = [
        await client.send("GrantConsent", body_of("GrantConsent", f"p-{n}")) for n in range(20)
    ]
    worker = deployment.start("command_service", program=("-c", ALWAYS_TOO_LATE))
    outcomes = await replies(client, innocent)
    assert {one["status"] for one in outcomes} == {"accepted"}
    queue = await client.channel.get_queue("consent.dead-letters", ensure=False)
    letter = await eventually(lambda: queue.get(fail=False), within=120, every=0.2)
    assert letter is not None
    await letter.ack()
    assert letter.correlation_id == odd
    assert await queue.get(fail=False) is None, "an innocent command was set aside as well"
    await worker.logs("the facts had changed each time")
    assert "exc_info" not in worker.log


async def test_a_log_that_ends_before_its_counter_is_named_once_and_stops_no_partition(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service")
    await asyncio.to_thread(worker.wait_ready)
    before = await client.command("GrantConsent", "p-1")
    assert worker.stop() == 0
    await fetch(
        deployment.event_store_url,
        f"UPDATE partitions SET position = position + 1 WHERE partition = {before['partition']}"  # noqa: S608
        " RETURNING partition",
    )
    worker = deployment.start("command_service")
    await asyncio.to_thread(worker.wait_ready)

    async def named() -> bool:
        return "log.ends_early" in worker.log

    await eventually(named)
    for number in range(4 * PARTITIONS):
        outcome = await client.command("GrantConsent", f"p-{number}", id_="d-2")
        assert outcome["status"] == "accepted"
    assert worker.log.count("log.ends_early") == 1
    assert worker.stop() == 0, worker.account()
