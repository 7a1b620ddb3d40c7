"""Replies where anybody may write anything into `reply_to`: honest senders get theirs."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import aiormq
import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_subscription import Seen, subscribed
from tests.support.amqp import Client, body_of, open_client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.standing import assert_unharmed, standing_deployment

VHOST: Final = "forged_replies"
DIRECT: Final = "amq.rabbitmq.reply-to"
_NUMBERS: Final = count(1)


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, VHOST, migrated) as made:
        yield made


@pytest.fixture
async def client(running: Deployment) -> AsyncIterator[Client]:
    async with open_client(running.rabbitmq_url, PARTITIONS) as connected:
        yield connected


class Asker:
    """Sends commands, and gets its replies by RabbitMQ's direct reply-to."""

    def __init__(self, client: Client, channel: Any) -> None:  # noqa: ANN401 - aiormq's
        self._client = client
        self._channel = channel
        self.sent: set[str] = set()
        self.answered: set[str] = set()

    @property
    def unanswered(self) -> set[str]:
        return self.sent - self.answered

    async def ask(self) -> None:
        patient, id_ = f"p-{uuid4()}", str(uuid4())
        self.sent.add(id_)
        properties = aiormq.spec.Basic.Properties(
            message_id=id_,
            correlation_id=id_,
            message_type="AskConsent",
            content_type="application/json",
            reply_to=DIRECT,
        )
        await self._channel.basic_publish(
            json.dumps(body_of("AskConsent", patient)).encode(),
            exchange="consent.commands",
            routing_key=self._client.key("AskConsent", patient),
            properties=properties,
        )

    async def arrived(self, delivery: Any) -> None:  # noqa: ANN401 - aiormq's
        self.answered.add(delivery.header.properties.correlation_id)

    async def expect_all(self) -> None:
        async def all_answered() -> bool:
            return not self.unanswered

        await eventually(all_answered, within=60)


@asynccontextmanager
async def open_asker(deployment: Deployment, client: Client) -> AsyncIterator[Asker]:
    connection = await aiormq.connect(deployment.rabbitmq_url)
    try:
        channel = await connection.channel()
        asker = Asker(client, channel)
        await channel.basic_consume(DIRECT, asker.arrived, no_ack=True)
        yield asker
    finally:
        await connection.close()


def _process_of(node: bytes) -> bytes:
    return b"\x83Xv" + len(node).to_bytes(2, "big") + node + bytes(8) + b"\0\0\0\1"


def forged(form: str) -> str:
    """Make an address up, another one each time but where the form says so."""
    number = next(_NUMBERS)
    process = {
        "the same, cut short": b"\x83Xv\x00\x0ereply@5",
        "of no process": b"\x83a" + bytes([number % 256]),
        "of one unknown node": _process_of(b"evil@nowhere")[:-4] + number.to_bytes(4, "big"),
        "of many unknown nodes": _process_of(b"reply@%d" % number),
    }[form]
    return f"{DIRECT}.{b64encode(process).decode()}.{'' if 'same' in form else number}AAAA=="


FORMS: Final = (
    "the same, cut short",
    "of no process",
    "of one unknown node",
    "of many unknown nodes",
)


async def attack(client: Client, forms: tuple[str, ...] = FORMS) -> None:
    """Ask with forged addresses until cancelled."""
    while True:
        for form in forms:
            body = body_of("AskConsent", "p-forger")
            await client.send("AskConsent", body, reply_to=forged(form))
            await asyncio.sleep(0.02)


@asynccontextmanager
async def attacked(client: Client) -> AsyncIterator[None]:
    task = asyncio.create_task(attack(client))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_no_honest_reply_is_lost_while_every_kind_of_address_is_forged(
    running: Deployment, client: Client
) -> None:
    async with open_asker(running, client) as steady:
        async with attacked(client):
            for _ in range(20):
                for _ in range(5):
                    await steady.ask()
                    await asyncio.sleep(0.02)
                async with open_asker(running, client) as newcomer:
                    await newcomer.ask()
                    await newcomer.expect_all()
            await steady.expect_all()
        await steady.ask()
        await steady.expect_all()
    worker = running.workers[0]
    assert worker.metric("consent_replies_lost_total", 'reason="forged"') > 0
    assert_unharmed(running)


async def test_a_worker_that_is_attacked_from_its_first_moment_answers_the_honest(
    deployment: Deployment,
) -> None:
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        for _ in range(5):
            for form in FORMS:
                await client.send(
                    "AskConsent", body_of("AskConsent", "p-forger"), reply_to=forged(form)
                )
        async with open_asker(deployment, client) as asker, attacked(client):
            await asker.ask()
            deployment.start("command_service").wait_ready()
            await asker.expect_all()


async def test_replies_in_flight_on_a_connection_that_is_closed_are_sent_again(
    running: Deployment, client: Client, sandbox: Sandbox
) -> None:
    def close_those_for_replies() -> int:
        listed = sandbox.broker.api("GET", f"/vhosts/{VHOST}/connections")
        ours = [one["name"] for one in listed if "direct replies" in str(one["client_properties"])]
        for name in ours:
            with suppress(Exception):
                sandbox.broker.api("DELETE", f"/connections/{quote(name, safe='')}")
        return len(ours)

    async with open_asker(running, client) as asker:
        closed = 0
        async with asyncio.timeout(60):
            while closed < 2:  # the broker's list is some seconds behind
                for _ in range(20):
                    await asker.ask()
                closed += await asyncio.to_thread(close_those_for_replies)
        await asker.expect_all()
    assert_unharmed(running)


@pytest.mark.parametrize(
    "queue", ["consent.dead-letters", "consent.commands.0", "consent.projection.1", "a.reader"]
)
async def test_no_reply_is_written_into_a_queue_that_takes_none(
    running: Deployment, client: Client, queue: str
) -> None:
    if queue == "a.reader":
        await client.channel.declare_queue(queue, exclusive=True)
    before = running.workers[0].metric("consent_replies_lost_total", "not_a_reply_queue")
    await client.send("AskConsent", body_of("AskConsent", f"p-{uuid4()}"), reply_to=queue)

    async def refused() -> bool:
        lost = running.workers[0].metric("consent_replies_lost_total", "not_a_reply_queue")
        return lost == before + 1

    await eventually(refused)
    assert await client.length(queue) == 0
    assert_unharmed(running)


async def test_a_reply_can_not_poison_what_a_subscriber_has_parked(
    running: Deployment, client: Client
) -> None:
    parked = await client.channel.declare_queue("poisoned.parked", exclusive=True)
    await client.send("AskConsent", body_of("AskConsent", f"p-{uuid4()}"), reply_to=parked.name)
    where = {"exchange": "consent.queries", "key": "ListConsents", "reply_to": parked.name}
    await client.send("ListConsents", {"patient_id": "p-1"}, **where)
    for worker in running.workers:

        async def refused(worker: Any = worker) -> bool:  # noqa: ANN401
            return bool(worker.metric("consent_replies_lost_total", "not_a_reply_queue"))

        await eventually(refused)
    assert await client.length(parked.name) == 0


async def test_a_parked_message_that_is_no_event_is_passed_over_and_stays(
    running: Deployment, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    queue = f"odd-{uuid4().hex[:6]}"
    seen = Seen()

    async def expect_the_next_event() -> None:
        outcome = await client.command("AskConsent", f"p-{uuid4()}")

        async def handed_over() -> bool:
            return outcome["events"][0]["id"] in [event.id for event in seen.events]

        await eventually(handed_over)

    async with subscribed(running, queue, seen.handle):
        await expect_the_next_event()
    for body in (b'{"patient_id": "p-secret"}', b"\xff", b"[]"):
        await client.send(None, body, exchange="", key=f"{queue}.parked", reply_to=None)
    async with subscribed(running, queue, seen.handle):
        await expect_the_next_event()

    async def all_stay() -> bool:
        return await client.length(f"{queue}.parked") == 3

    await eventually(all_stay)
    said = capfd.readouterr()
    assert "parked.not_an_event" in said.out + said.err
    assert "p-secret" not in said.out + said.err


async def test_a_worker_that_can_not_send_direct_replies_is_not_ready_and_says_so(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    vhost = deployment.rabbitmq_url.rsplit("/", 1)[1]
    limit = f"/vhost-limits/{vhost}/max-connections"
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        worker = deployment.start("command_service")
        worker.wait_ready()
        async with open_asker(deployment, client) as asker:
            sandbox.broker.api("PUT", limit, {"value": 3})
            await asker.ask()

            async def says(status: int, text: str) -> bool:
                code, body = worker.get("/health/ready")
                return code == status and text in body

            await eventually(lambda: says(503, "replies"))
            assert worker.metric("consent_replies_waiting") == 1
            sandbox.broker.api("DELETE", limit)
            await asker.expect_all()
            await eventually(lambda: says(200, "ready"))
            assert "session.lost" not in worker.log
