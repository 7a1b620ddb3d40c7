"""Logs say what happened, by ids and counts, and nothing of what the records say."""

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aio_pika
import pytest
from yarl import URL

from tests.chaos.links import Disorder, open_wires
from tests.servers.test_parked import event_of
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch, projected

PLANTED: Final = "planted"
"""Is in everything that no line may hold."""
PATIENT: Final = "planted-patient"
BATCHES: Final = ("batch.appended", "batch.published", "batch.projected", "batch.answered")
AT_ONCE: Final = 4
"""Processes side by side."""

ODD_COMMAND_WORKER = """
import asyncio
from command_service.path import command_path
decode, failed = command_path.decode, []
def odd(delivery, partitions):
    if not failed:
        body = delivery.body.decode()
        failed.append(True)
        asyncio.get_running_loop().call_soon({}.__getitem__, body)
        try:
            {}[body]
        except KeyError as error:
            raise ExceptionGroup(body, [ValueError(body)]) from error
    return decode(delivery, partitions)
command_path.decode = odd
from command_service.cli import app
app(["run"])
"""
ODD_PROJECTION_WORKER = """
from projection_service import projector
fold, failed = projector.fold, []
def odd(facts, consents, parked):
    if not failed:
        failed.append(True)
        raise RuntimeError(facts)
    return fold(facts, consents, parked)
projector.fold = odd
from projection_service.cli import app
app(["run"])
"""


def lines(worker: Worker, event: str) -> list[dict[str, Any]]:
    """Read those lines of a JSON log that tell of this."""
    written = worker.log.rpartition("\n")[0]
    read = [json.loads(line) for line in written.splitlines()]
    return [line for line in read if line["event"] == event]


def tells(worker: Worker, *events: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return all(event in worker.log for event in events)

    return look


async def test_no_line_of_any_log_holds_a_planted_value(
    deployment: Deployment, client: Client
) -> None:
    command = deployment.start("command_service", program=("-c", ODD_COMMAND_WORKER))
    projection = deployment.start(
        "projection_service", program=("-c", ODD_PROJECTION_WORKER), LOG_FORMAT="console"
    )
    await send_good_commands(client)
    await send_bad_commands(client)
    await ask(client)
    await publish_odd_events(deployment, client)
    await lose_things(deployment, client)
    refused = start_with_wrong_passwords(deployment)

    await eventually(tells(command, "error.uncaught", "session.lost", "delivery.set_aside"))
    await eventually(tells(projection, "RuntimeError", "event.parked", "not_an_event"))
    for worker, server in zip(refused, ("broker", "event store") * 2, strict=False):
        await eventually(tells(worker, "session.waiting", f"the {server} refuses the login"))
    leaked = [
        line
        for worker in deployment.workers
        for line in [*worker.log.splitlines(), *worker.get("/metrics")[1].splitlines()]
        if PLANTED in line or "er_visits" in line
    ]
    assert not leaked


async def send_good_commands(client: Client) -> None:
    for type_ in ("AskConsent", "GrantConsent", "RevokeConsent"):
        outcome = await client.command(type_, PATIENT, target="er_visits", id_="planted-doctor")
        assert outcome["status"] == "accepted"


async def send_bad_commands(client: Client) -> None:
    good = body_of("GrantConsent", PATIENT)
    key = client.key("GrantConsent", PATIENT)
    sent = [
        await client.send("GrantConsent", b'{"patient_id": "planted', key=key),
        await client.send("GrantConsent", b"\xff planted", key=key),
        await client.send("GrantConsent", {**good, "planted-field": "planted"}, key=key),
        await client.send("GrantConsent", {**good, "target": "planted"}, key=key),
        await client.send("GrantConsent", good, key=key, content_type="planted"),
        await client.send("GrantConsent", good, key="planted.key"),
        await client.send("planted", good, key=key, headers={"planted": "planted"}),
    ]
    for one in sent:
        assert (await client.reply(one))["status"] == "rejected"


async def ask(client: Client) -> None:
    listed = await client.query("ListConsents", patient_id=PATIENT, min_version=3)
    assert listed["status"] == "ok"
    assert (await client.query("ListConsents", patient_id=PATIENT, planted=1))["status"]
    assert (await client.query("HasConsent", patient_id=PATIENT))["error"] == "validation_error"
    assert (await client.query("ReadEvents", partition=PATIENT))["error"] == "validation_error"


async def publish_odd_events(deployment: Deployment, client: Client) -> None:
    """Publish what is no event, and one with content that parks its patient."""
    partition = int(client.key("GrantConsent", PATIENT).split(".")[1])
    position = await projected(deployment) + 1
    data = {"patient_id": PATIENT, "to_entity": "planted", "to_id": "planted", "target": "exams"}
    event = event_of(partition, position, 4, subject=PATIENT, data=data)
    exchange = await client.channel.get_exchange("consent.events", ensure=False)
    for body in (json.dumps(event).encode(), b'{"planted": "planted"}'):
        await exchange.publish(aio_pika.Message(body), f"granted.doctor.exams.{partition}")


async def lose_things(deployment: Deployment, client: Client) -> None:
    """Take a queue and the databases' connections away."""
    await client.channel.queue_delete("consent.commands.0")
    for url in (deployment.event_store_url, deployment.read_model_url):
        await fetch(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )


def with_password(url: str, port: int | None = None) -> str:
    return str(URL(url).with_password("planted-password").with_port(port or URL(url).port))


def start_with_wrong_passwords(deployment: Deployment) -> list[Worker]:
    broker = {"RABBITMQ_URL": with_password(deployment.rabbitmq_url)}
    store = {"EVENT_STORE_URL": with_password(deployment.event_store_url)}
    console = {"LOG_FORMAT": "console"}
    chosen: list[dict[str, str]] = [broker, store, broker | console, store | console]
    return [deployment.start("command_service", **settings) for settings in chosen]


async def test_no_verb_says_a_password(deployment: Deployment) -> None:
    urls = {
        "RABBITMQ_URL": deployment.rabbitmq_url,
        "EVENT_STORE_URL": deployment.event_store_url,
        "READ_MODEL_URL": deployment.read_model_url,
    }
    wrong = [
        {name: with_password(url) for name, url in urls.items()},
        {name: with_password(url, port=1) for name, url in urls.items()},
        {name: f"http{with_password(url)}" for name, url in urls.items()},
    ]
    verbs = [
        ("command_service", "check"),
        ("command_service", "migrate"),
        ("command_service", "topology"),
        ("projection_service", "check", "--json"),
        ("projection_service", "parked", "list"),
        ("projection_service", "rebuild", "--dry-run"),
    ]
    asked = [(verb, settings) for verb in verbs for settings in wrong]
    for start in range(0, len(asked), AT_ONCE):
        running = [
            deployment.begin(*verb, **settings) for verb, settings in asked[start : start + AT_ONCE]
        ]
        for said in await asyncio.gather(*(asyncio.to_thread(end_of, one) for one in running)):
            assert PLANTED not in said


def end_of(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode, "it can't have worked"
    assert out + err
    return out + err


async def test_lines_of_batches_have_partitions_and_counts_and_lines_of_messages_have_their_ids(
    deployment: Deployment, client: Client
) -> None:
    command, projection = deployment.start_both()
    partition = int(client.key("GrantConsent", "p-1").split(".")[1])
    await client.command("GrantConsent", "p-1", target="all")
    assert (await client.query("ListConsents", patient_id="p-1", min_version=4))["version"] == 4
    wrong = await client.send("GrantConsent", b"{}", key="grant.0", message_id="no-uuid")
    assert (await client.reply(wrong))["status"] == "rejected"
    await eventually(tells(command, "batch.published", "delivery.set_aside"))
    await eventually(tells(projection, "batch.projected", "batch.answered"))

    async def all_told() -> bool:
        seen = [*lines(projection, "batch.projected"), *lines(projection, "log.read")]
        for told in (seen, lines(command, "batch.published")):
            if sum(one["events"] for one in told) < 4:
                return False
        return True

    await eventually(all_told)

    (appended, *_) = lines(command, "batch.appended")
    assert (appended["partitions"], appended["deliveries"], appended["events"]) == (
        [partition], 1, 4,
    )  # fmt: skip
    batches = [
        line for worker in (command, projection) for name in BATCHES for line in lines(worker, name)
    ]
    assert all(line["milliseconds"] >= 0 for line in batches)
    (set_aside, *_) = lines(command, "delivery.set_aside")
    assert (set_aside["message_id"], set_aside["correlation_id"]) == ("no-uuid", wrong)
    assert set_aside["reason"] == "validation_error"


@pytest.mark.parametrize("format_", ["json", "console"])
async def test_a_message_can_not_write_lines_of_its_own_into_the_log(
    deployment: Deployment, client: Client, format_: str
) -> None:
    worker = deployment.start("command_service", LOG_FORMAT=format_)
    forged = "x\n\x1b[31mworker.forged"
    await client.reply(
        await client.send("GrantConsent", b"{}", key="grant.0", correlation_id=forged)
    )
    await eventually(tells(worker, "delivery.set_aside"))
    assert "\x1b" not in worker.log
    assert not [line for line in worker.log.splitlines() if line.startswith("worker.forged")]


async def test_a_database_that_goes_away_is_told_in_lines_of_ours_and_by_no_library(
    deployment: Deployment,
) -> None:
    with open_wires() as wires:
        link = wires.lay(deployment.read_model_url)
        worker = deployment.start("projection_service", READ_MODEL_URL=link.url)
        worker.wait_ready()
        link.disturb(Disorder("refuse"))
        await eventually(lambda: told(worker, "session.waiting"))
        link.disturb(None)
        worker.wait_ready()
        assert await told(worker, "session.lost")
        assert "pool connection floor" not in worker.log


async def told(worker: Worker, event: str) -> bool:
    return bool(lines(worker, event))
