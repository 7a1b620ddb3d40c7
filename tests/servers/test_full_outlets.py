"""A queue that is full or missing stops only what must go there; nothing is lost meanwhile."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aiormq.abc import FieldTable

from command_service.insistence import ON_REFUSED
from shared.client.client import ConsentClient
from shared.client.subscription import subscribe
from shared.errors import NoAnswer
from shared.messages.cloud_event import CloudEvent
from shared.messages.names import command_queue
from shared.messages.topic_patterns import whole
from shared.rabbitmq.connection import Properties, connect
from shared.rabbitmq.publishing import Outgoing, Why, publish_in_order
from shared.values.partition import partition_of
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually
from tests.support.facts import folded_log, log_size, projected, read_model

FULL: Final[FieldTable] = {"x-max-length": 1, "x-overflow": "reject-publish"}
DEAD_LETTERS: Final = "consent.dead-letters"
MANY: Final = 60


@pytest.fixture
def api(sandbox: Sandbox, deployment: Deployment) -> Callable[..., Any]:
    """Ask the management API about the deployment's virtual host."""
    vhost = quote(deployment.rabbitmq_url.rsplit("/", 1)[1], safe="")

    def ask(method: str, kind: str, name: str, body: object = None) -> Any:  # noqa: ANN401
        return sandbox.broker.api(method, f"/{kind}/{vhost}/{name}", body)

    return ask


@pytest.fixture
def fill(api: Callable[..., Any]) -> Iterator[Callable[[str], None]]:
    """Give what limits a queue to one message, as an operator's policy does."""

    def limit(queue: str) -> None:
        definition = {"max-length": 1, "overflow": "reject-publish"}
        pattern = f"^{queue.replace('.', '[.]')}$"
        policy = {"pattern": pattern, "definition": definition, "apply-to": "queues"}
        api("PUT", "policies", "full", policy)

    yield limit
    with suppress(Exception):
        api("DELETE", "policies", "full")


def lifted(api: Callable[..., Any]) -> None:
    api("DELETE", "policies", "full")


def grants(patients: int) -> list[dict[str, Any]]:
    return [body_of("GrantConsent", f"p-{number}") for number in range(patients)]


async def granted(client: Client, patients: int) -> list[dict[str, Any]]:
    """Send grants without waiting in between; return the outcomes."""
    ids = [await client.send("GrantConsent", body) for body in grants(patients)]
    return [await client.reply(one) for one in ids]


def all_projected(deployment: Deployment) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return await projected(deployment) == await log_size(deployment)

    return look


def all_published(worker: Worker, events: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return worker.metric("consent_events_published_total") == events

    return look


def all_seen(seen: Sequence[AbstractIncomingMessage], events: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return len({message.message_id for message in seen}) == events

    return look


def not_ready_for(worker: Worker, missing: str) -> Callable[[], Awaitable[str]]:
    async def look() -> str:
        status, body = worker.get("/health/ready")
        return body if status == 503 and missing in body else ""

    return look


def ready(worker: Worker) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return worker.get("/health/ready")[0] == 200

    return look


def has(queue: str, client: Client, messages: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return await client.length(queue) == messages

    return look


async def test_a_full_queue_of_one_subscriber_stops_nobody_else(
    deployment: Deployment, client: Client
) -> None:
    command, _ = deployment.start_both()
    trap = await client.channel.declare_queue("trap", durable=True, arguments=FULL)
    await trap.bind("consent.events", "#")
    seen: list[AbstractIncomingMessage] = []
    await client.subscribe("#", seen.append)

    outcomes = await granted(client, MANY)

    assert {one["status"] for one in outcomes} == {"accepted"}
    await eventually(all_published(command, MANY))
    await eventually(all_projected(deployment))
    assert await read_model(deployment) == await folded_log(deployment)
    await eventually(all_seen(seen, MANY))
    copies = Counter(message.message_id for message in seen)
    assert max(copies.values()) <= 1 + len(ON_REFUSED)
    assert command.metric("consent_events_refused_total", "refused") >= MANY - 1
    await command.logs('"events.refused"', "`check --management` names it")
    assert "session.lost" not in command.log
    assert command.stop() == 0


@asynccontextmanager
async def subscribed(
    deployment: Deployment, queue: str, patterns: tuple[str, ...], handle: Callable[..., Any]
) -> AsyncIterator[None]:
    following = asyncio.create_task(
        subscribe(
            deployment.rabbitmq_url,
            queue,
            handle,
            patterns=patterns,
            partitions=deployment.partitions,
        )
    )
    try:
        yield
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


@pytest.mark.parametrize("patterns", [("#",), ("granted.#",)], ids=["everything", "a choice"])
async def test_a_subscriber_whose_own_queue_is_full_gets_every_event_in_order(
    deployment: Deployment,
    client: Client,
    fill: Callable[[str], None],
    patterns: tuple[str, ...],
) -> None:
    deployment.start_both()
    fill("narrow")
    handled: list[CloudEvent] = []
    slowly = asyncio.Event()

    async def handle(event: CloudEvent) -> None:
        if len(handled) == 1:
            await slowly.wait()
        handled.append(event)

    async def has_handled_some() -> bool:
        return len(handled) > 100

    async with subscribed(deployment, "narrow", patterns, handle):
        await client.command("GrantConsent", "p-0")
        # Beyond what it takes before it has handled anything, the broker keeps one.
        for round_ in range(12):
            ids = [
                await client.send(type_, body_of(type_, f"p-{number}", id_=f"d-{round_}"))
                for number in range(MANY)
                for type_ in ("GrantConsent", "AskConsent")
            ]
            for one in ids:
                await client.reply(one)
        slowly.set()
        await eventually(has_handled_some)  # its queue takes events again: some later ones arrive
        await granted(client, 10 * MANY)

        wanted = {
            (one["partition"], one["position"])
            for one in await fetch_events(client, deployment.partitions)
            if patterns == ("#",) or one["type"] == "ConsentGranted"
        }

        async def all_handled() -> bool:
            return len({(one.partition, one.position) for one in handled}) == len(wanted)

        await eventually(all_handled, within=60)
    assert {(one.partition, one.position) for one in handled} == wanted
    for number in range(deployment.partitions):
        positions = [one.position for one in handled if one.partition == number]
        assert positions == sorted(set(positions))


async def fetch_events(client: Client, partitions: int) -> list[dict[str, Any]]:
    """Read the whole log."""
    events: list[dict[str, Any]] = []
    for number in range(partitions):
        after = 0
        while page := (await client.query("ReadEvents", partition=number, after_position=after))[
            "events"
        ]:
            events += page
            after = page[-1]["position"]
    return events


async def test_a_queue_that_refused_for_a_moment_gets_every_event(
    deployment: Deployment, client: Client, api: Callable[..., Any], fill: Callable[[str], None]
) -> None:
    """As one does whose leader has just died, and which has the next one soon."""
    arguments: FieldTable = {"x-queue-type": "quorum"}
    mine = await client.channel.declare_queue("mine", durable=True, arguments=arguments)
    await mine.bind("consent.events", "#")
    command = deployment.start("command_service")
    command.wait_ready()
    fill("mine")

    got: set[str | None] = set()

    async def refused() -> bool:
        await client.command("GrantConsent", f"p-{uuid4()}")
        return command.metric("consent_events_refused_total", "refused") > 0

    async def all_there() -> bool:
        got.update(message.message_id for message in await client.take_all("mine"))
        return len(got) == await log_size(deployment)

    await eventually(refused)
    lifted(api)
    await eventually(all_there)


async def test_a_full_queue_of_the_projection_stops_neither_commands_nor_subscribers(
    deployment: Deployment,
    client: Client,
    fill: Callable[[str], None],
    api: Callable[..., Any],
) -> None:
    command = deployment.start("command_service")
    command.wait_ready()
    fill("consent.projection.0")
    seen: list[AbstractIncomingMessage] = []
    await client.subscribe("#", seen.append)

    outcomes = await granted(client, MANY)

    assert {one["status"] for one in outcomes} == {"accepted"}

    await eventually(all_seen(seen, MANY))
    told = await eventually(not_ready_for(command, "projection_queue"))
    assert "consent.projection.0" in told
    assert "session.lost" not in command.log
    copies = Counter(message.message_id for message in seen)
    assert max(copies.values()) <= 1 + len(ON_REFUSED)

    lifted(api)
    of_it = sum(1 for one in outcomes if one["partition"] == 0)
    await eventually(ready(command))
    await eventually(all_published(command, MANY))
    assert await client.length("consent.projection.0") >= of_it
    deployment.start("projection_service")
    await eventually(all_projected(deployment))
    assert await read_model(deployment) == await folded_log(deployment)


async def test_a_missing_queue_of_the_projection_is_left_to_the_next_owner(
    deployment: Deployment, client: Client, api: Callable[..., Any]
) -> None:
    command = deployment.start("command_service")
    command.wait_ready()
    for number in range(deployment.partitions):
        api("DELETE", "queues", f"consent.projection.{number}")

    outcomes = await granted(client, MANY)

    assert {one["status"] for one in outcomes} == {"accepted"}
    await eventually(not_ready_for(command, "projection_queue"))
    assert command.stop() == 0, "what can't be published now keeps no worker"
    deployment.declare()
    deployment.start_both()
    await eventually(all_projected(deployment))
    assert await read_model(deployment) == await folded_log(deployment)


async def test_without_the_exchange_of_events_commands_go_on_and_no_event_is_passed_over(
    deployment: Deployment, client: Client, api: Callable[..., Any]
) -> None:
    command, _ = deployment.start_both()
    trap = await client.channel.declare_queue("all", durable=True)
    api("DELETE", "exchanges", "consent.events")

    outcomes = await granted(client, MANY)

    assert {one["status"] for one in outcomes} == {"accepted"}
    await eventually(not_ready_for(command, "consent.events is missing"))
    assert "session.lost" not in command.log
    assert command.stop() == 0
    deployment.declare()
    await trap.bind("consent.events", "#")
    deployment.start("command_service")
    await eventually(has("all", client, MANY))
    await eventually(all_projected(deployment))
    assert await read_model(deployment) == await folded_log(deployment)


def drop(api: Callable[..., Any], fill: Callable[[str], None]) -> None:
    api("DELETE", "queues", DEAD_LETTERS)


def restore(deployment: Deployment, api: Callable[..., Any]) -> None:
    deployment.declare()


def overfill(api: Callable[..., Any], fill: Callable[[str], None]) -> None:
    fill(DEAD_LETTERS)


def empty(deployment: Deployment, api: Callable[..., Any]) -> None:
    lifted(api)


async def test_a_client_that_was_refused_is_answered_once_the_queue_takes_commands_again(
    deployment: Deployment, api: Callable[..., Any], fill: Callable[[str], None]
) -> None:
    queue = command_queue(partition_of("p-1", PARTITIONS))
    fill(queue)
    url = deployment.rabbitmq_url
    async with ConsentClient.connect(url, partitions=PARTITIONS, within=1) as consent:

        async def refused() -> bool:
            with pytest.raises(NoAnswer) as told:
                await consent.grant("p-1", "doctor", "d-1", "exams")
            return "refuse" in str(told.value)

        await eventually(refused)
        lifted(api)
        deployment.start("command_service").wait_ready()

        async def answered() -> bool:
            with suppress(NoAnswer):
                await consent.grant("p-1", "doctor", "d-2", "exams")
                return True
            return False

        await eventually(answered)


async def test_a_queue_that_refused_replies_gets_them_again_once_it_takes_them(
    deployment: Deployment, client: Client, api: Callable[..., Any], fill: Callable[[str], None]
) -> None:
    arguments: FieldTable = {"x-queue-type": "quorum"}
    await client.channel.declare_queue("mine", durable=True, arguments=arguments)
    deployment.start("command_service").wait_ready()

    async def taken() -> bool:
        before = await client.length("mine")
        await client.send("AskConsent", body_of("AskConsent", "p-1"), reply_to="mine")
        await client.reply(await client.send("AskConsent", body_of("AskConsent", "p-1")))
        return await client.length("mine") > before

    async def refused() -> bool:
        return not any([await taken() for _ in range(3)])

    fill("mine")
    await eventually(refused)
    lifted(api)
    await eventually(taken, every=0.5)


REFUSING: Final = {"missing": (drop, restore), "full": (overfill, empty)}


@pytest.mark.parametrize("how", REFUSING)
async def test_dead_letters_that_refuse_delay_only_what_must_go_there(
    deployment: Deployment,
    client: Client,
    api: Callable[..., Any],
    fill: Callable[[str], None],
    how: str,
) -> None:
    command, projection = deployment.start_both()
    refuse, allow = REFUSING[how]
    refuse(api, fill)
    twice = str(uuid4())
    bad = [
        await client.send("GrantConsent", b"no", key="grant.0", message_id=one)
        for one in ("", twice, twice, str(uuid4()))
    ]
    key = client.key("GrantConsent", "p-1")
    good = []
    for number in range(MANY):
        bad.append(await client.send("GrantConsent", b"no %d" % number, key=key))
        body = body_of("GrantConsent", "p-1", id_=f"d-{number}")
        good.append(await client.send("GrantConsent", body))
    await client.channel.default_exchange.publish(
        a_message(b"no event"), routing_key="consent.projection.0"
    )

    outcomes = [await client.reply(one) for one in good]

    assert [one["version"] for one in outcomes] == list(range(1, MANY + 1))
    answers = [await client.reply(one) for one in bad]
    assert {one["error"] for one in answers} == {"validation_error"}
    await eventually(all_projected(deployment))
    for worker in (command, projection):
        assert "session.lost" not in worker.log
        await worker.logs(*(['"dead_letters.refused"'] if how == "missing" else []))
    told = await eventually(not_ready_for(command, "dead_letters"))
    assert f"{DEAD_LETTERS} is full or missing" in told

    async def all_wait_or_are_there() -> bool:
        waiting = sum(one.metric("consent_dead_letters_waiting") for one in (command, projection))
        there = await client.length(DEAD_LETTERS) if how == "full" else 0
        return waiting + there == len(bad) + 1

    await eventually(all_wait_or_are_there)
    allow(deployment, api)
    await eventually(has(DEAD_LETTERS, client, len(bad) + 1))
    await eventually(ready(command))
    for number in range(deployment.partitions):
        await eventually(has(f"consent.commands.{number}", client, 0))
    letters = await client.dead_letters()
    kept = Counter(message.body for message in letters)
    assert kept[b"no"] == 4
    assert kept[b"no event"] == 1
    assert [one.headers.get("x-consent-message-id") for one in letters].count(twice) == 2
    assert all(kept[b"no %d" % number] == 1 for number in range(MANY))
    assert command.stop() == 0
    for number in range(deployment.partitions):
        assert await client.length(f"consent.commands.{number}") == 0


def a_message(body: bytes) -> aio_pika.Message:
    return aio_pika.Message(body, message_id=str(uuid4()), delivery_mode=2)


async def test_a_worker_that_stops_while_dead_letters_are_missing_leaves_what_waits_to_the_next(
    deployment: Deployment, client: Client, api: Callable[..., Any]
) -> None:
    command = deployment.start("command_service")
    command.wait_ready()
    api("DELETE", "queues", DEAD_LETTERS)
    await client.reply(await client.send("GrantConsent", b"no", key="grant.0"))
    assert command.stop() == 0
    assert await client.length("consent.commands.0") == 1

    deployment.declare()
    deployment.start("command_service")
    await eventually(has(DEAD_LETTERS, client, 1))
    await eventually(has("consent.commands.0", client, 0))


async def test_more_faults_than_a_worker_takes_at_once_block_no_command_and_none_is_lost(
    deployment: Deployment, client: Client, api: Callable[..., Any]
) -> None:
    command = deployment.start("command_service")
    command.wait_ready()
    api("DELETE", "queues", DEAD_LETTERS)
    key = client.key("GrantConsent", "p-1")
    many = 600
    for number in range(many):
        await client.send("GrantConsent", b"no %d" % number, key=key)

    outcome = await client.command("GrantConsent", "p-1")

    assert outcome["status"] == "accepted"
    assert "session.lost" not in command.log

    async def broker_keeps_the_rest() -> int:
        """It tries again by itself, three minutes after it has failed."""
        queue = await asyncio.to_thread(api, "GET", "queues", f"consent.commands.{key[-1]}")
        waiting = int(command.metric("consent_dead_letters_waiting"))
        return waiting if queue.get("messages_dlx") == many - waiting else 0

    waiting = await eventually(broker_keeps_the_rest, within=60, every=0.5)
    assert waiting < many
    deployment.declare()
    await eventually(has(DEAD_LETTERS, client, waiting))


async def test_of_a_long_message_the_dead_letters_keep_the_beginning_and_a_digest(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("command_service")
    body = b"[" * 60_000
    forged = {"x-consent-body-size": 1, "x-consent-body-sha256": "none"}
    await client.reply(await client.send("GrantConsent", body, key="grant.0", headers=forged))
    (kept,) = await client.dead_letters()
    assert kept.body == body[: 8 * 1024]
    assert kept.headers["x-consent-body-size"] == len(body)
    assert kept.headers["x-consent-body-sha256"] == sha256(body).hexdigest()


async def test_each_message_of_a_window_that_reaches_no_queue_is_told_whatever_its_id(
    deployment: Deployment,
) -> None:
    same = str(uuid4())
    lost = [Outgoing("", "nowhere", b"", Properties(message_id=one)) for one in (None, same, same)]
    full = Outgoing("", "full", b"", Properties(message_id=str(uuid4())))
    kept, also = (
        Outgoing("", DEAD_LETTERS, b"", Properties(message_id=str(uuid4()))) for _ in range(2)
    )
    uncaught: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: uncaught.append(told))
    async with connect(deployment.rabbitmq_url, name="test") as broker:
        await (await broker.channel()).queue_declare("full", arguments={**FULL, "x-max-length": 0})
        channel = await broker.channel(confirms=True)
        refused = await publish_in_order(channel, [kept, *lost, full, also])
        assert [one.message for one in refused] == [*lost, full]
        assert [one.why for one in refused] == [*[Why.UNROUTABLE] * 3, Why.REFUSED]
        assert await publish_in_order(channel, [kept]) == []
        assert not broker.is_lost()
    assert uncaught == []


def test_dead_letters_without_a_bound_are_named_and_topology_says_what_to_do(
    deployment: Deployment, api: Callable[..., Any]
) -> None:
    declared = api("GET", "queues", DEAD_LETTERS)["arguments"]
    assert declared["x-max-length-bytes"] == 1024**3
    api("DELETE", "queues", DEAD_LETTERS)
    before = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    api("PUT", "queues", DEAD_LETTERS, {"durable": True, "arguments": before})
    done = deployment.run("command_service", "topology")
    assert done.returncode == 2
    assert "inequivalent arg 'x-max-length" in done.stderr
    assert "a queue keeps the arguments that it was declared with: take out what it holds" in (
        done.stderr
    )
    assert "different: " in deployment.run("command_service", "check").stdout


async def test_check_names_the_queues_that_refuse_events_and_those_that_may(
    deployment: Deployment, client: Client, sandbox: Sandbox, fill: Callable[[str], None]
) -> None:
    managed = {"RABBITMQ_MANAGEMENT_URL": sandbox.broker.management_url}
    full = await client.channel.declare_queue("subscriber-full", arguments=FULL)
    may = await client.channel.declare_queue("subscriber-may")
    drops = await client.channel.declare_queue("subscriber-drops", arguments={"x-max-length": 1})
    fill("subscriber-may")
    through = await client.channel.declare_exchange("subscriber-through", "fanout")
    await through.bind("consent.events", "#")
    await full.bind(through)
    for queue in (may, drops):
        await queue.bind("consent.events", "asked.#")

    def told() -> tuple[bool, str]:
        done = deployment.run("command_service", "check", "--json", **managed)
        findings = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
        return findings["subscribers"]["ok"], findings["subscribers"]["detail"]

    async def told_of_both() -> str:
        ok, detail = await asyncio.to_thread(told)
        return detail if ok and "subscriber-may" in detail else ""

    detail = await eventually(told_of_both, every=0.5)
    assert "subscriber-full" in detail
    assert "subscriber-drops" not in detail

    await fill_up(client, full)

    async def told_that_it_refuses() -> str:
        ok, detail = await asyncio.to_thread(told)
        return "" if ok else detail

    detail = await eventually(told_that_it_refuses, every=0.5)
    assert "refuse events: subscriber-full" in detail
    plain = deployment.run("command_service", "check").stdout
    assert "✓ subscribers: not looked at, give --management" in plain


async def fill_up(client: Client, queue: AbstractQueue) -> None:
    await client.channel.default_exchange.publish(a_message(b""), routing_key=queue.name)


@pytest.mark.parametrize(
    ("chosen", "bound"),
    [
        (["#"], ("#",)),
        (["granted.#", "asked.doctor.exams.3"], ("#",)),
        (["*.*.exams.3", "#.12", "#.3"], ("#.12", "#.3")),
    ],
)
def test_a_choice_is_widened_to_whole_partitions(chosen: list[str], bound: tuple[str, ...]) -> None:
    assert whole(chosen) == bound
