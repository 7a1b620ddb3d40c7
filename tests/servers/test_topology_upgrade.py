"""A topology that an older version declared is brought up to date, and what waits there is kept."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from shared.rabbitmq.topology import queues
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, Json, body_of, open_client
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually

CLASSIC: Final[Json] = {"x-queue-type": "classic", "x-message-ttl": 30_000}
FORMER_QUERIES: Final = ("ListConsents", "HasConsent", "ConsentHistory")
LEADERS: Final = "x-queue-leader-locator"
MANY: Final = 400
QUEUE: Final = "consent.queries"


@pytest.fixture
def former(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    """Give a deployment whose topology is that of an older version."""
    name = "former_topology"
    with open_deployment(sandbox, name, partitions=PARTITIONS, prepared_from=migrated) as made:
        asyncio.run(declare_former(made.rabbitmq_url))
        yield made


@asynccontextmanager
async def opened_channel(url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(url) as connection:
        yield await connection.channel()


async def declare_former(url: str) -> None:
    """Declare what an older version did: classic queues of questions, leaders where it ran."""
    async with opened_channel(url) as channel:
        for name in ("consent.unroutable", "consent.queries.unknown"):
            await channel.declare_exchange(name, "fanout", durable=True)
        await channel.declare_exchange("consent.events", "topic", durable=True)
        for name, type_, rest in (
            ("consent.commands", "topic", "consent.unroutable"),
            ("consent.queries", "direct", "consent.queries.unknown"),
        ):
            alternate: Json = {"alternate-exchange": rest}
            await channel.declare_exchange(name, type_, durable=True, arguments=alternate)
        for queue in queues(PARTITIONS):
            if queue.name in ("consent.log", "consent.queries", "consent.checks"):
                continue
            arguments = {name: value for name, value in queue.arguments.items() if name != LEADERS}
            made = await channel.declare_queue(queue.name, durable=True, arguments=arguments)
            for exchange, key in queue.former or queue.bindings:
                await made.bind(exchange, key)
        await declare_classic_queues(channel)


async def declare_classic_queues(channel: AbstractChannel) -> None:
    pages = await channel.declare_queue("consent.log", durable=True, arguments=CLASSIC)
    await pages.bind("consent.queries", "ReadEvents")
    questions = await channel.declare_queue("consent.queries", durable=True, arguments=CLASSIC)
    await questions.bind("consent.queries.unknown", "")
    for key in FORMER_QUERIES:
        await questions.bind("consent.queries", key)


async def ask_everything(client: Client, patient: str) -> dict[str, list[str]]:
    """Ask a question of every kind; return the ids under which each will be answered."""
    body = {"patient_id": patient, "entity_name": "doctor", "entity_id": "d-1"}
    bodies: dict[str, Json] = {
        "ListConsents": {"patient_id": patient},
        "HasConsent": body,
        "ConsentHistory": {"patient_id": patient},
        "CheckConsents": {"questions": []},
        "Nonsense": {},
        "ReadEvents": {"partition": 0, "after_position": 0, "limit": 1},
    }
    return {
        type_: [await client.send(type_, asked, exchange="consent.queries", key=type_)]
        for type_, asked in bodies.items()
    }


async def answered_once(client: Client, ids: dict[str, list[str]]) -> None:
    for type_, asked in ids.items():
        for correlation_id in asked:
            answer = await client.reply(correlation_id)
            wanted = "error" if type_ in ("Nonsense", "CheckConsents") else "ok"
            assert answer["status"] == wanted, (type_, answer)
            assert client.waiting[correlation_id].empty(), type_


def test_every_queue_is_a_quorum_queue_whose_leaders_are_spread() -> None:
    for queue in queues(PARTITIONS):
        assert queue.arguments["x-queue-type"] == "quorum", queue.name
        assert queue.arguments[LEADERS] == "balanced", queue.name


async def test_an_older_topology_is_replaced_and_what_waits_is_answered(
    former: Deployment, sandbox: Sandbox
) -> None:
    async with open_client(former.rabbitmq_url, PARTITIONS) as client:
        patient = "p-1"
        granted = await client.send("GrantConsent", body_of("GrantConsent", patient))
        asked = await ask_everything(client, patient)
        upgraded = former.run("command_service", "topology")
        assert upgraded.returncode == 0, upgraded.stderr
        again = former.run("command_service", "topology")
        assert (again.returncode, again.stdout) == (0, upgraded.stdout), again.stderr
        checked = former.run("command_service", "check")
        assert "exchanges, " in checked.stdout, checked.stdout
        vhost = former.rabbitmq_url.rpartition("/")[2]
        bindings = sandbox.broker.api("GET", f"/queues/{vhost}/consent.projection.0/bindings")
        keys = {one["routing_key"] for one in bindings if one["source"]}
        assert keys == {"*.*.*.0"}, "a second way would cost the broker time for each event"
        former.start_both()
        assert (await client.reply(granted))["_type"] == "CommandAccepted"
        await answered_once(client, asked)
        await answered_once(client, await ask_everything(client, patient))


async def test_it_is_refused_by_name_while_an_older_worker_reads(former: Deployment) -> None:
    async with opened_channel(former.rabbitmq_url) as channel:
        log = await channel.get_queue("consent.log")
        tag = await log.consume(leave_it)
        refused = former.run("command_service", "topology")
        assert refused.returncode == 3
        assert "consent.log" in refused.stderr
        assert "stop those of command_service" in refused.stderr
        await declare_classic_queues(channel)  # which fails where anything of it has changed
        await log.cancel(tag)
    assert former.run("command_service", "topology").returncode == 0


async def test_killed_in_the_middle_it_goes_on_where_it_was(former: Deployment) -> None:
    async with open_client(former.rabbitmq_url, PARTITIONS) as client:
        body = {"patient_id": "p-1"}
        ids = [
            await client.send("ListConsents", body, exchange="consent.queries", key="ListConsents")
            for _ in range(MANY)
        ]
        interrupted = former.begin("command_service", "topology")
        async with await aio_pika.connect(former.rabbitmq_url) as looking:
            await eventually(lambda: some_are_moved(looking), every=0.005)
        interrupted.send_signal(signal.SIGKILL)
        interrupted.communicate()
        done = former.run("command_service", "topology")
        assert done.returncode == 0, done.stderr
        # Taken out at once: nobody waits for an answer for longer than questions wait.
        assert set(ids) == {message.correlation_id for message in await client.take_all(QUEUE)}


async def leave_it(_: AbstractIncomingMessage) -> None:
    """Take nothing off its queue."""


async def some_are_moved(connection: AbstractConnection) -> bool:
    """Whether the upgrade has begun to move questions; what is not there closes the channel."""
    async with connection.channel() as channel:
        try:
            found = await channel.declare_queue("consent.queries.moved", passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return bool(found.declaration_result.message_count)
