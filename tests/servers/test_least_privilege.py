"""Every process under a user of its own: all work is done, and nothing beside it can be."""

import asyncio
import itertools
import json
import secrets
import shlex
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aiormq.abc import FieldValue
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from command_service.broker_users.permissions import Role, rabbitmqctl_lines, rights
from shared.client.client import ConsentClient
from shared.client.subscription import subscribe
from shared.errors import NotAllowed
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import Actor, Question
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_cli import CONSENT
from tests.support import warm
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment, ServiceName, open_deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch
from tests.support.standing import all_settled, assert_unharmed

VHOST: Final = "least"
ROLES: Final = (
    "topology", "command-service", "projection-service", "asker", "sender", "checker",
    "inquirer", "subscriber",
)  # fmt: skip
DOCTOR: Final = Actor(entity_name="doctor", entity_id="d-1")
DIRECT_REPLIES: Final = "amq.rabbitmq.reply-to"


@dataclass
class Guarded:
    """A deployment in which nobody is the administrator, and the URL of each user."""

    sandbox: Sandbox
    deployment: Deployment
    urls: dict[str, str] = field(default_factory=dict)

    def add_user(self, name: str, *roles: str) -> None:
        """Create a user of the broker and do what the verb `permissions` says."""
        self.create_user(name)
        for line in rabbitmqctl_lines(VHOST, name, [Role(role) for role in roles]):
            apply(self.sandbox, shlex.split(line))

    def create_user(self, name: str) -> None:
        password = secrets.token_hex(8)
        self.sandbox.broker.api("PUT", f"/users/{name}", {"password": password, "tags": ""})
        self.urls[name] = with_login(self.deployment.rabbitmq_url, name, password)


def apply(sandbox: Sandbox, words: list[str]) -> None:
    """Do over HTTP what one line of rabbitmqctl would do."""
    program, verb, option, vhost, user, *more = words
    assert (program, option, vhost) == ("rabbitmqctl", "-p", VHOST)
    if verb == "set_permissions":
        body = dict(zip(("configure", "write", "read"), more, strict=True))
        sandbox.broker.api("PUT", f"/permissions/{vhost}/{user}", body)
    elif verb == "set_topic_permissions":
        body = dict(zip(("exchange", "write", "read"), more, strict=True))
        sandbox.broker.api("PUT", f"/topic-permissions/{vhost}/{user}", body)
    else:
        assert (verb, more) == ("clear_topic_permissions", [])


def with_login(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rsplit("@", 1)[1]
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{place}"))


@pytest.fixture(scope="module")
def guarded(sandbox: Sandbox) -> Iterator[Guarded]:
    with open_deployment(sandbox, VHOST, partitions=PARTITIONS) as deployment:
        made = Guarded(sandbox, deployment)
        for role in ROLES:
            made.add_user(f"the-{role}", role)
        topology = deployment.run(
            "command_service", "topology", RABBITMQ_URL=made.urls["the-topology"]
        )
        assert topology.returncode == 0, topology.stderr
        start(made, "command_service", "EVENT_STORE_URL", "command-service")
        start(made, "projection_service", "READ_MODEL_URL", "projection-service")
        yield made
    for user in made.urls:
        sandbox.broker.api("DELETE", f"/users/{user}")


def start(guarded: Guarded, service: ServiceName, setting: str, role: str) -> None:
    """Migrate as a user that owns the database, and start the worker as one that doesn't."""
    deployment, sandbox = guarded.deployment, guarded.sandbox
    stores = {
        "command_service": (sandbox.event_store_server, deployment.event_store_url),
        "projection_service": (sandbox.read_model_server, deployment.read_model_url),
    }
    server, url = stores[service]
    for name in (f"{VHOST}_owner", f"{VHOST}_worker"):
        server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw'")
    server.execute(f"ALTER DATABASE {VHOST} OWNER TO {VHOST}_owner")
    migrated = deployment.run(
        *(service, "migrate", "--worker-role", f"{VHOST}_worker"),
        **{setting: with_login(url, f"{VHOST}_owner", "pw")},
    )
    assert migrated.returncode == 0, migrated.stderr
    worker = deployment.start(
        service,
        RABBITMQ_URL=guarded.urls[f"the-{role}"],
        **{setting: with_login(url, f"{VHOST}_worker", "pw")},
    )
    worker.wait_ready()


@asynccontextmanager
async def channel_of(guarded: Guarded, user: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(guarded.urls[user]) as connection:
        yield await connection.channel()


@asynccontextmanager
async def client_of(guarded: Guarded, user: str) -> AsyncIterator[Client]:
    """Give a client that declares nothing: replies come directly."""
    async with channel_of(guarded, user) as channel:
        replies = await channel.get_queue(DIRECT_REPLIES, ensure=False)
        client = Client(channel, replies, PARTITIONS)

        async def receive(message: Any) -> None:  # noqa: ANN401 - an incoming message
            client.waiting[message.correlation_id].put_nowait(message)

        await replies.consume(receive, no_ack=True)
        yield client


async def log(guarded: Guarded, patient_id: str) -> list[str]:
    """Say what has happened to a patient."""
    rows = await fetch(
        guarded.deployment.event_store_url,
        f"SELECT type FROM events WHERE stream_id = '{patient_id}' ORDER BY stream_version",  # noqa: S608
    )
    return [row["type"] for row in rows]


async def test_the_main_job_is_done_with_every_process_under_its_own_user(
    guarded: Guarded,
) -> None:
    seen: list[Any] = []
    async with channel_of(guarded, "the-subscriber") as channel:
        queue = await channel.declare_queue("the-subscriber.events", auto_delete=True)
        await queue.bind("consent.events", "#")

        async def receive(message: Any) -> None:  # noqa: ANN401 - an incoming message
            seen.append(json.loads(message.body)["type"])

        await queue.consume(receive, no_ack=True)
        urls, within = guarded.urls, 10.0
        async with ConsentClient.connect(urls["the-asker"], partitions=PARTITIONS) as asker:
            asked = await asker.ask("p-main", "doctor", "d-1", "exams")
        async with ConsentClient.connect(urls["the-sender"], partitions=PARTITIONS) as sender:
            granted = await sender.grant("p-main", "doctor", "d-1", "exams")
        async with ConsentClient.connect(urls["the-inquirer"], within=within) as inquirer:
            held = await inquirer.has_consent("p-main", "doctor", "d-1", "exams", min_version=2)

        async def both_seen() -> bool:
            return seen == ["ConsentAsked", "ConsentGranted"]

        await eventually(both_seen)
    assert (asked.status, granted.status, held.has_consent) == ("accepted", "accepted", True)


async def test_what_is_at_fault_is_answered_and_set_aside_under_these_users_too(
    guarded: Guarded,
) -> None:
    letters = "/queues/least/consent.dead-letters/contents"
    guarded.sandbox.broker.api("DELETE", letters)
    async with client_of(guarded, "the-sender") as sender:
        lost = await sender.send("GrantConsent", body_of("GrantConsent", "p-1"), key="nowhere")
        broken = await sender.send("GrantConsent", b"no", key="grant.0")
        assert (await sender.reply(lost))["error"] == "misrouted_command"
        assert (await sender.reply(broken))["error"] == "validation_error"
    get = {"count": 9, "ackmode": "ack_requeue_false", "encoding": "auto"}
    kept = guarded.sandbox.broker.api("POST", letters.replace("contents", "get"), get)
    assert len(kept) == 2
    assert_unharmed(guarded.deployment)


@pytest.mark.parametrize(
    ("type_", "verb"),
    [("GrantConsent", "grant"), ("RevokeConsent", "revoke"), ("DenyConsent", "deny")],
)
async def test_an_asker_can_neither_grant_nor_revoke_nor_deny(
    guarded: Guarded, type_: str, verb: str
) -> None:
    async with client_of(guarded, "the-asker") as asker:
        with pytest.raises(ChannelAccessRefused, match=f"ACCESS_REFUSED.*topic '{verb}\\.[0-9]'"):
            await asker.send(type_, body_of(type_, "p-asker"))
    assert await log(guarded, "p-asker") == []


async def test_an_asker_may_withdraw_what_was_asked(guarded: Guarded) -> None:
    async with client_of(guarded, "the-asker") as asker:
        await asker.command("AskConsent", "p-withdrawn")
        assert (await asker.command("WithdrawRequest", "p-withdrawn"))["status"] == "accepted"
        body = body_of("DenyConsent", "p-withdrawn")
        withdraw = asker.key("WithdrawRequest", "p-withdrawn")
        told = await asker.reply(await asker.send("DenyConsent", body, key=withdraw))
        assert told["error"] == "misrouted_command"
    assert await log(guarded, "p-withdrawn") == ["ConsentAsked", "RequestWithdrawn"]


async def test_an_asker_is_told_at_once_that_it_may_not_grant(guarded: Guarded) -> None:
    url = guarded.urls["the-asker"]
    async with ConsentClient.connect(url, partitions=PARTITIONS) as asker:
        with pytest.raises(NotAllowed, match="not allowed to send GrantConsent"):
            await asker.grant("p-told", "doctor", "d-1", "exams")
        assert (await asker.ask("p-told", "doctor", "d-1", "exams")).status == "accepted"
    words = [CONSENT, "grant", "p-told", "doctor", "d-1", "exams"]
    done = warm.run(words, guarded.deployment.environment(RABBITMQ_URL=url))
    assert done.returncode == 2
    assert done.stderr.startswith("error: not allowed to send GrantConsent: ACCESS_REFUSED")
    assert len(done.stderr.splitlines()) == 1


async def test_a_subscriber_that_may_query_follows_watches_and_parks_under_its_own_user(
    guarded: Guarded,
) -> None:
    guarded.add_user("the-follower", "subscriber", "inquirer")
    url, queue = guarded.urls["the-follower"], "the-follower.main"
    async with ConsentClient.connect(guarded.urls["the-asker"], partitions=PARTITIONS) as asker:
        await asker.ask("p-followed", "doctor", "d-1", "exams")
        await asker.ask("p-unhandled", "doctor", "d-1", "exams")
    seen: list[str] = []

    async def handle(event: CloudEvent) -> None:
        if event.subject == "p-unhandled":
            raise ValueError
        seen.append(event.subject)

    following = asyncio.create_task(
        subscribe(url, queue, handle, partitions=PARTITIONS, attempts=1)
    )

    async def parked() -> bool:
        assert not following.done(), following.exception()
        found = guarded.sandbox.broker.api("GET", f"/queues/{VHOST}")
        counts = {one["name"]: one.get("messages", 0) for one in found}
        return "p-followed" in seen and counts.get(f"{queue}.parked") == 1

    await eventually(parked, within=60)
    following.cancel()
    await asyncio.wait([following])

    watch = warm.Popen(
        [CONSENT, "watch", "--from-origin", "--patient", "p-followed"],
        env=guarded.deployment.environment(RABBITMQ_URL=url),
        stdout=subprocess.PIPE,
    )
    assert watch.stdout is not None
    with watch.stdout:
        assert b"p-followed  asked by doctor d-1  exams" in watch.stdout.readline()
    watch.kill()
    watch.wait(10)


@pytest.mark.parametrize("user", ["the-subscriber", "the-inquirer"])
async def test_who_may_not_query_or_not_own_queues_is_told_at_once_that_it_may_not_subscribe(
    guarded: Guarded, user: str
) -> None:
    async def handle(_: CloudEvent) -> None:
        """Nothing comes."""

    with pytest.raises(NotAllowed, match="needs the roles subscriber and inquirer"):
        await subscribe(guarded.urls[user], f"{user}.main", handle, partitions=PARTITIONS)
    environment = guarded.deployment.environment(RABBITMQ_URL=guarded.urls[user])
    done = warm.run([CONSENT, "watch"], environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "needs the roles subscriber and inquirer" in done.stderr


Act = Callable[[AbstractChannel], Awaitable[object]]


def publish(exchange: str, key: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        to = (
            await channel.get_exchange(exchange, ensure=False)
            if exchange
            else channel.default_exchange
        )
        await to.publish(aio_pika.Message(b"{}"), key, mandatory=False)

    return act


def consume(queue: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).consume(ignore)

    return act


async def ignore(_: object) -> None:
    """Leave a message where it is."""


def purge(queue: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).purge()

    return act


def delete(queue: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).delete(if_unused=False, if_empty=False)

    return act


def declare(queue: str, **arguments: FieldValue) -> Act:
    return lambda channel: channel.declare_queue(queue, auto_delete=True, arguments=arguments)


def declare_exchange(name: str, **arguments: FieldValue) -> Act:
    return lambda channel: channel.declare_exchange(name, auto_delete=True, arguments=arguments)


def bind_own(exchange: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        queue = await channel.declare_queue("the-subscriber.spy", auto_delete=True)
        await queue.bind(exchange, "#")

    return act


def dead_letter_to(exchange: str, key: str) -> Act:
    steering: dict[str, FieldValue] = {
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-routing-key": key,
    }
    return declare("the-subscriber.steered", **steering)


EVERYBODY_ELSE = [f"the-{role}" for role in ROLES if role != "topology"]
READ_BY_NO_CLIENT = ("consent.commands.0", "consent.projection.0", "consent.queries",
                     "consent.log", "consent.unroutable", "consent.dead-letters")  # fmt: skip
FORBIDDEN: Final[dict[str, tuple[list[str], Act]]] = {
    "declare a queue of ours": (EVERYBODY_ELSE, declare("consent.commands.9")),
    "declare a queue": ([*EVERYBODY_ELSE, "the-topology"], declare("somebody.else")),
    "declare an exchange": (EVERYBODY_ELSE, declare_exchange("consent.more")),
    "delete a queue": (EVERYBODY_ELSE, delete("consent.commands.0")),
    "publish an event": (
        [user for user in [*EVERYBODY_ELSE, "the-topology"] if user != "the-command-service"],
        publish("consent.events", "granted.doctor.exams.0"),
    ),
    "send a grant": (
        [user for user in [*EVERYBODY_ELSE, "the-topology"] if user != "the-sender"],
        publish("consent.commands", "grant.0"),
    ),
    "publish straight to a queue": (
        ["the-asker", "the-sender", "the-checker", "the-inquirer", "the-subscriber"],
        publish("", "consent.projection.0"),
    ),
    "send a query": (
        ["the-asker", "the-sender", "the-subscriber", "the-command-service"],
        publish("consent.queries", "ReadEvents"),
    ),
    **{
        f"ask {query}": (
            ["the-asker", "the-sender", "the-checker", "the-projection-service"],
            publish("consent.queries", query),
        )
        for query in ("ListConsents", "ListPatients", "ConsentHistory", "Unknown")
    },
    "read the log as a checker": (["the-checker"], publish("consent.queries", "ReadEvents")),
    "check as a worker": (
        ["the-projection-service", "the-topology"],
        publish("consent.queries", "CheckConsents"),
    ),
    "bind to the commands": (["the-subscriber"], bind_own("consent.commands")),
    "bind to the queries": (["the-subscriber"], bind_own("consent.queries")),
    "dead-letter into the commands": (
        ["the-subscriber"],
        dead_letter_to("consent.commands", "grant.0"),
    ),
    "dead-letter into the events": (["the-subscriber"], dead_letter_to("consent.events", "x.0")),
    "dead-letter into a queue": (["the-subscriber"], dead_letter_to("", "consent.projection.0")),
    "alternate into the commands": (
        ["the-subscriber"],
        declare_exchange("the-subscriber.x", **{"alternate-exchange": "consent.commands"}),
    ),
    "look into the read model's queues": (
        ["the-command-service"],
        consume("consent.projection.0"),
    ),
    "read the queries": (["the-command-service"], consume("consent.queries")),
    "look into the commands": (["the-projection-service"], consume("consent.commands.0")),
    "read the log's queries": (["the-projection-service"], consume("consent.log")),
    "read the dead letters": (
        ["the-command-service", "the-projection-service"],
        consume("consent.dead-letters"),
    ),
    "empty another's queue": (["the-projection-service"], purge("consent.commands.0")),
    **{
        f"read {queue}": (
            ["the-asker", "the-sender", "the-checker", "the-inquirer", "the-subscriber"],
            consume(queue),
        )
        for queue in READ_BY_NO_CLIENT
    },
}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_nobody_may(guarded: Guarded, what: str) -> None:
    users, act = FORBIDDEN[what]
    for user in users:
        async with channel_of(guarded, user) as channel:
            with pytest.raises(ChannelAccessRefused):
                await act(channel)


def number_of(client: Client, patient_id: str) -> int:
    return int(client.key("AskConsent", patient_id).split(".")[1])


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_a_carbon_copy_does_not_turn_an_ask_into_a_grant(
    guarded: Guarded, header: str
) -> None:
    patient_id = f"p-{header}"
    async with client_of(guarded, "the-asker") as asker:
        number = number_of(asker, patient_id)
        steering = {header: [f"grant.{number}", f"grant.{(number + 1) % PARTITIONS}"]}
        try:
            sent = await asker.send(
                "GrantConsent",
                body_of("GrantConsent", patient_id),
                key=f"ask.{number}",
                headers=steering,
            )
        except ChannelAccessRefused:  # RabbitMQ 4 checks where copies go, 3.10 does not
            assert version_of(guarded) >= 4
        else:
            for _ in range(2):  # it reached two queues
                assert (await asker.reply(sent))["error"] == "misrouted_command"
    assert await log(guarded, patient_id) == []


def version_of(guarded: Guarded) -> int:
    overview = guarded.sandbox.broker.api("GET", "/overview")
    return int(overview["rabbitmq_version"].split(".")[0])


async def test_a_carbon_copy_in_another_partition_is_refused_and_harms_nobody(
    guarded: Guarded,
) -> None:
    async with client_of(guarded, "the-asker") as asker:
        others = [f"ask.{n}" for n in range(PARTITIONS) if n != number_of(asker, "p-copied")]
        body = body_of("AskConsent", "p-copied")
        sent = await asker.send("AskConsent", body, headers={"CC": others})
        replies = [await asker.reply(sent) for _ in range(PARTITIONS)]
    refusals = [one for one in replies if one["status"] == "rejected"]
    assert len(refusals) == len(others)
    assert {one["error"] for one in refusals} == {"misrouted_command"}
    assert "without CC" in refusals[0]["details"][0]["message"]
    assert await log(guarded, "p-copied") == ["ConsentAsked"]
    assert_unharmed(guarded.deployment)


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_a_carbon_copy_does_not_turn_a_check_into_another_question(
    guarded: Guarded, header: str
) -> None:
    async with client_of(guarded, "the-checker") as checker:
        body = {"patient_id": "p-1", "entity_name": "doctor", "entity_id": "d-1"}
        try:
            sent = await checker.send(
                "ListConsents",
                body,
                exchange="consent.queries",
                key="HasConsent",
                headers={header: ["ListConsents", "ConsentHistory", "ReadEvents"]},
            )
        except ChannelAccessRefused:  # RabbitMQ 4 checks where copies go, 3.10 does not
            assert version_of(guarded) >= 4
        else:
            replies = [await checker.reply(sent) for _ in range(3)]
            assert not any("consents" in reply or "events" in reply for reply in replies)
            assert not any("periods" in reply for reply in replies)


async def test_a_checker_checks_and_is_told_at_once_that_it_may_ask_nothing_else(
    guarded: Guarded,
) -> None:
    async with ConsentClient.connect(guarded.urls["the-checker"], within=20) as checker:
        held = await checker.has_consent("p-checked", "doctor", "d-1")
        asked = Question(patient_id="p-checked", actors=[DOCTOR])
        (answer,) = await checker.check_consents([asked])
        assert (held.has_consent, answer.status) == (False, "ok")
        with pytest.raises(NotAllowed, match="not allowed to send ListConsents"):
            await checker.list_consents("p-checked")
        with pytest.raises(NotAllowed, match="not allowed to send ListPatients"):
            await checker.list_patients("doctor", "d-1")


async def test_an_inquirer_asks_everything_and_sends_nothing(guarded: Guarded) -> None:
    async with ConsentClient.connect(guarded.urls["the-inquirer"], within=20) as inquirer:
        asked = Question(patient_id="p-asked", actors=[DOCTOR])
        assert (await inquirer.check_consents([asked]))[0].status == "ok"
        assert (await inquirer.list_patients("doctor", "d-none")).patients == []
        assert (await inquirer.history("p-asked")).periods == []
        assert (await inquirer.read_events(0, limit=1)).head >= 0
        with pytest.raises(NotAllowed):
            await inquirer.ask("p-asked", "doctor", "d-1", "exams")
        with pytest.raises(NotAllowed):
            await inquirer.grant("p-asked", "doctor", "d-1", "exams")


def test_roles_that_limit_and_roles_that_do_not_add_up_for_each_exchange() -> None:
    def limits(*roles: Role) -> dict[str, str]:
        return {topic.exchange: topic.write for topic in rights("somebody", roles).topics}

    asking, checking = r"^(ask|withdraw)\.", "^(HasConsent|CheckConsents)$"
    commands, queries = "consent.commands", "consent.queries"
    assert limits(Role.ASKER, Role.CHECKER) == {commands: asking, queries: checking}
    assert limits(Role.SENDER, Role.CHECKER) == {queries: checking}
    assert limits(Role.ASKER, Role.INQUIRER) == {commands: asking}
    assert limits(Role.CHECKER, Role.INQUIRER, Role.SENDER) == {}
    assert limits(Role.CHECKER, Role.PROJECTION_SERVICE) == {queries: f"{checking}|^ReadEvents$"}


async def test_who_may_send_replies_cannot_forge_a_command_with_them(guarded: Guarded) -> None:
    """The projector needs the default exchange, which leads to every queue."""
    async with client_of(guarded, "the-projection-service") as projector:
        number = number_of(projector, "p-forged")
        steering = {"CC": [f"consent.commands.{number}"]}
        sent = await projector.send(
            *("GrantConsent", body_of("GrantConsent", "p-forged")),
            exchange="",
            key=f"grant.{number}",
            headers=steering,
        )
        refused = await projector.reply(sent)
    assert refused["error"] == "misrouted_command"
    assert "exchange consent.commands" in refused["details"][0]["message"]
    assert await log(guarded, "p-forged") == []


async def test_a_reply_sent_to_our_own_queues_does_nothing_there(guarded: Guarded) -> None:
    """A `reply_to` has the worker write where its sender may not."""
    ours = ("commands.0", "projection.0", "queries", "log", "unroutable")
    async with client_of(guarded, "the-asker") as asker:
        for n, queue in enumerate(ours):
            body = body_of("AskConsent", f"p-reply-{n}")
            await asker.send("AskConsent", body, reply_to=f"consent.{queue}")
    async with client_of(guarded, "the-inquirer") as inquirer:
        for queue in ours:
            for type_, query in (
                ("ReadEvents", {"partition": 0}),
                ("ListConsents", {"patient_id": "p-main"}),
                ("GrantConsent", body_of("GrantConsent", "p-reply-0")),
            ):
                await inquirer.send(
                    type_, query, exchange="consent.queries", key=type_,
                    reply_to=f"consent.{queue}",
                )  # fmt: skip
    await eventually(lambda: all_settled_but_dead_letters(guarded))
    for n in range(len(ours)):
        assert await log(guarded, f"p-reply-{n}") == ["ConsentAsked"]
    assert_unharmed(guarded.deployment)


async def all_settled_but_dead_letters(guarded: Guarded) -> bool:
    guarded.sandbox.broker.api("DELETE", "/queues/least/consent.dead-letters/contents")
    return await all_settled(guarded.sandbox, VHOST)


async def test_an_asker_that_declares_queues_could_grant_so_the_verb_refuses_to_make_one(
    guarded: Guarded,
) -> None:
    """RabbitMQ checks no topic where a queue dead-letters: who declares one can send with it."""
    both = itertools.product(("asker", "checker"), ("subscriber", "topology"))
    for limited, more in both:
        said = guarded.deployment.run("command_service", "permissions", "sly", limited, more)
        assert (said.returncode, said.stdout) == (2, "")
        assert "make it two users" in said.stderr

    guarded.create_user("sly")
    own = r"^(sly\..*|consent\.commands)$"
    rights = {"configure": own, "write": own, "read": own}
    guarded.sandbox.broker.api("PUT", f"/permissions/{VHOST}/sly", rights)
    topic = {"exchange": "consent.commands", "write": r"^(ask|withdraw)\.", "read": "^$"}
    guarded.sandbox.broker.api("PUT", f"/topic-permissions/{VHOST}/sly", topic)
    async with client_of(guarded, "sly") as sly:
        key = f"grant.{number_of(sly, 'p-sly')}"
        steering: dict[str, FieldValue] = {
            "x-dead-letter-exchange": "consent.commands",
            "x-dead-letter-routing-key": key,
            "x-message-ttl": 0,
        }
        queue = await sly.channel.declare_queue("sly.q", auto_delete=True, arguments=steering)
        exchange = await sly.channel.declare_exchange("sly.x", "fanout", auto_delete=True)
        await queue.bind(exchange)
        body = body_of("GrantConsent", "p-sly")
        await sly.send("GrantConsent", body, exchange="sly.x", key="", reply_to=None)
        await eventually(lambda: log(guarded, "p-sly"))


async def test_a_user_may_sign_with_its_own_name_which_the_event_keeps(guarded: Guarded) -> None:
    async with client_of(guarded, "the-asker") as asker:
        signed = await asker.command("AskConsent", "p-signed", user_id="the-asker")
        unsigned = await asker.command("AskConsent", "p-signed")
        number = number_of(asker, "p-signed")
    assert (signed["version"], unsigned["version"]) == (1, 2)
    async with client_of(guarded, "the-inquirer") as inquirer:
        page = await inquirer.query("ReadEvents", partition=number, patient_id="p-signed")
    assert [event.get("issuedby") for event in page["events"]] == ["the-asker", None]


async def test_a_user_may_not_sign_with_anothers_name(guarded: Guarded) -> None:
    async with client_of(guarded, "the-asker") as asker:
        body = body_of("AskConsent", "p-unsigned")
        with pytest.raises(ChannelPreconditionFailed, match="user_id property set to 'the-sender'"):
            await asker.send("AskConsent", body, user_id="the-sender")
    assert await log(guarded, "p-unsigned") == []


def test_the_verb_prints_what_an_operator_pastes(guarded: Guarded) -> None:
    said = guarded.deployment.run("command_service", "permissions", "clinic a", "asker")
    limit = r"'^(ask|withdraw)\.' '^$'"
    assert said.stdout.splitlines() == [
        "rabbitmqctl set_topic_permissions -p least 'clinic a' consent.commands " + limit,
        r"rabbitmqctl set_permissions -p least 'clinic a' '^$' '^(consent\.commands)$' '^$'",
    ]


def test_a_name_that_is_one_of_ours_makes_no_subscriber(guarded: Guarded) -> None:
    said = guarded.deployment.run("command_service", "permissions", "consent", "subscriber")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("error: a user can't be called consent")


def test_in_the_end_the_workers_are_unharmed_and_drain(guarded: Guarded) -> None:
    assert_unharmed(guarded.deployment)
    for worker in guarded.deployment.workers:
        assert "permission denied" not in worker.log
        assert worker.stop() == 0
