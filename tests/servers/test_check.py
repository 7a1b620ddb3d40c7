"""`check` says what is missing and what to do, and who owns what; and it changes nothing."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

import pytest
from aio_pika.abc import AbstractIncomingMessage

from command_service import cli as command_cli
from command_service.settings import CommandSettings
from projection_service import cli as projection_cli
from projection_service.settings import ProjectionSettings
from shared.cli import check_clocks, check_postgres, check_rabbitmq
from shared.cli.check import check
from shared.cli.check_results import Finding, Needs
from shared.postgres.connection import Pool
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_least_privilege import with_login
from tests.support.amqp import open_client
from tests.support.deployment import SERVICES, Deployment, open_deployment

VHOST: Final = "check"
CLERK: Final = "check-clerk"
NOTHING: Final = {"configure": "^$", "write": "^$", "read": "^$"}
NAMES: Final = [
    *(
        "settings",
        "version",
        "database",
        "clock",
        "clocks",
        "schema",
        "database rights",
        "partitions",
    ),
    *("leases", "broker", "topology", "broker rights", "subscribers", "identity", "log", "plugins"),
]


@pytest.fixture(scope="module")
def checked(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    """Give the tests that mend what they break one deployment, without workers."""
    with open_deployment(sandbox, VHOST, partitions=PARTITIONS, prepared_from=migrated) as made:
        assert made.run("command_service", "topology").returncode == 0
        yield made


@pytest.fixture
def clerk(sandbox: Sandbox, checked: Deployment) -> Iterator[str]:
    """Give the URL of a user of the broker who may do nothing yet."""
    sandbox.broker.api("PUT", f"/users/{CLERK}", {"password": "pw", "tags": ""})
    sandbox.broker.api("PUT", f"/permissions/{VHOST}/{CLERK}", NOTHING)
    yield with_login(checked.rabbitmq_url, CLERK, "pw")
    sandbox.broker.api("DELETE", f"/users/{CLERK}")


def needs(deployment: Deployment, service: str, more: dict[str, str]) -> Needs:
    given: dict[str, Any] = {
        "rabbitmq_url": deployment.rabbitmq_url,
        "consent_partitions": PARTITIONS,
        **more,
    }
    if service == "command_service":
        own = {"event_store_url": deployment.event_store_url}
        return command_cli.needs(CommandSettings(**own | given))
    own = {"read_model_url": deployment.read_model_url}
    return projection_cli.needs(ProjectionSettings(**own | given))


def found(
    deployment: Deployment,
    service: str = "command_service",
    management: str | None = None,
    **more: str,
) -> dict[str, Finding]:
    """Check, and return the findings by name."""
    report = asyncio.run(check(lambda: needs(deployment, service, more), management))
    return {one.name: one for one in report.findings}


def complaints(deployment: Deployment, management: str | None = None, **more: str) -> list[str]:
    """Check, and return what is not right, in words."""
    findings = found(deployment, management=management, **more).values()
    return [f"{one.name}: {one.detail}" for one in findings if not one.ok]


def test_with_everything_there_it_is_content_and_tells_who_owns_what(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    deployment.start_both()
    for service in SERVICES:
        managed = {"RABBITMQ_MANAGEMENT_URL": sandbox.broker.management_url}
        done = deployment.run(service, "check", "--json", **managed)
        assert done.returncode == 0, done
        report = json.loads(done.stdout)
        assert report["ok"]
        assert [one["name"] for one in report["findings"]] == NAMES
        owners = {one["owner"].split("/")[0] for one in report["partitions"]}
        assert len(report["partitions"]) == PARTITIONS
        assert len(owners) == 1
        assert owners.pop().startswith(service)
    shown = deployment.run("command_service", "check").stdout
    assert "✓ topology: 5 exchanges, 17 queues; bindings not compared, give --managem" in shown
    for worker in deployment.workers:
        assert "session.lost" not in worker.log


def test_queues_beyond_the_partitions_are_named_and_never_made(deployment: Deployment) -> None:
    fewer = {"CONSENT_PARTITIONS": str(PARTITIONS - 1)}
    remedy = f"there are queues for more than {PARTITIONS - 1} partitions: set CONSENT_PARTITIONS"
    declared = deployment.run("command_service", "topology", **fewer)
    assert declared.returncode == 2
    assert declared.stderr.startswith(f"error: {remedy}")
    said = complaints(deployment, consent_partitions=str(PARTITIONS - 1))
    assert any(one.startswith(f"topology: {remedy}") for one in said)


def test_what_is_missing_is_named_with_the_remedy(checked: Deployment, sandbox: Sandbox) -> None:
    bare = {
        "RABBITMQ_URL": sandbox.broker.create_vhost("check_bare"),
        "READ_MODEL_URL": sandbox.read_model_server.create_database("check_bare"),
        "EVENT_STORE_URL": "postgresql://nobody:secret@127.0.0.1:1/nothing",
    }
    projection = checked.run("projection_service", "check", **bare)
    assert projection.returncode == 1
    assert "✗ schema: the database has no consent schema yet: run `migrate`" in projection.stdout
    assert (
        "✗ topology: run `python -m command_service topology`; "
        "missing: exchange consent.unroutable, exchange consent.commands" in projection.stdout
    )
    command = checked.run("command_service", "check", **bare)
    assert command.returncode == 1
    assert "✗ database: not reached:" in command.stdout
    assert "secret" not in command.stdout + command.stderr
    sandbox.broker.delete_vhost("check_bare")
    sandbox.read_model_server.drop_database("check_bare")


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("RABBITMQ_URL", "", "RABBITMQ_URL is not set: give it a value like amqp://"),
        ("EVENT_STORE_URL", "mysql://x", "EVENT_STORE_URL is wrong: must be a URL like"),
        ("CONSENT_PARTITIONS", "0", "CONSENT_PARTITIONS is wrong: input should be"),
    ],
)
def test_a_setting_that_is_wrong_is_a_finding_too(
    checked: Deployment, setting: str, value: str, complaint: str
) -> None:
    done = checked.run("command_service", "check", "--json", **{setting: value})
    assert (done.returncode, done.stderr) == (1, "")
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["name"], finding["ok"]) == ("settings", False)
    assert finding["detail"].startswith(complaint)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"consent_partitions": "3"}, "partitions: CONSENT_PARTITIONS is 3, but this deployment"),
        ({"rabbitmq_url": "amqp://u:secret@127.0.0.1:1/"}, "broker: not reached:"),
        ({"management": "http://u:secret@127.0.0.1:1"}, "topology: not compared, the management"),
    ],
)
def test_what_a_setting_leads_to_is_looked_at(
    checked: Deployment, more: dict[str, str], complaint: str
) -> None:
    said = complaints(checked, **more)
    assert any(one.startswith(complaint) for one in said), said
    assert "secret" not in " ".join(said)


def test_a_password_that_the_management_api_refuses_is_said(
    checked: Deployment, sandbox: Sandbox
) -> None:
    wrong = sandbox.broker.management_url.replace(sandbox.broker.password, "wrong")
    (said,) = complaints(checked, wrong)
    assert "topology: not compared, the management API refuses (401 " in said


@pytest.mark.parametrize(
    ("told", "ok"), [("15.8 (Debian 15.8-0+deb12u1)", True), ("12.22", False), ("18beta1", True)]
)
def test_a_postgresql_that_is_too_old_is_said(told: str, ok: bool) -> None:
    finding = check_postgres.server_finding(told)
    assert finding.ok == ok
    assert ok or finding.detail == "PostgreSQL 12.22 is too old: use 13 or newer"


@pytest.mark.parametrize(("told", "ok"), [("3.10.8", True), ("3.9.29", False), ("4.2.0", True)])
def test_a_rabbitmq_that_is_too_old_is_said(told: str, ok: bool) -> None:
    finding = check_rabbitmq.server_finding(told)
    assert finding.ok == ok
    assert ok or finding.detail == "RabbitMQ 3.9.29 is too old: use 3.10 or newer"


@pytest.mark.parametrize(("hours", "said"), [(1, "ahead of"), (-1, "behind")])
async def test_a_clock_that_is_wrong_is_said(event_store_pool: Pool, hours: int, said: str) -> None:
    wrong = timedelta(hours=hours)
    finding = await check_clocks.clock_finding(event_store_pool, lambda: datetime.now(UTC) + wrong)
    assert not finding.ok
    assert f" s {said} the database's: set both by NTP" in finding.detail


def test_an_older_schema_is_said(deployment: Deployment, sandbox: Sandbox) -> None:
    database = deployment.event_store_url.rsplit("/", 1)[1]
    sandbox.event_store_server.execute(
        "DELETE FROM _pogo_migration WHERE migration_id LIKE '0002%'", database
    )
    assert complaints(deployment) == [
        "schema: the schema is older than this version: run `migrate` (0002-events)"
    ]


def test_a_queue_an_exchange_and_a_binding_that_are_missing_are_named(
    checked: Deployment, sandbox: Sandbox
) -> None:
    api = sandbox.broker.api
    managed = sandbox.broker.management_url
    remedy = "topology: run `python -m command_service topology`; missing: "
    binding = f"/bindings/{VHOST}/e/consent.events/q/consent.projection.1/{quote('#.1')}"
    try:
        api("DELETE", binding.replace("#", "%23"))
        assert complaints(checked) == []
        assert complaints(checked, managed) == [
            f"{remedy}binding of consent.projection.1 to consent.events with '#.1'"
        ]
        api("DELETE", f"/queues/{VHOST}/consent.commands.2")
        assert complaints(checked) == [f"{remedy}queue consent.commands.2"]
        api("DELETE", f"/exchanges/{VHOST}/consent.events")
        gone = [f"{remedy}exchange consent.events, queue consent.commands.2"]
        assert complaints(checked) == complaints(checked, managed) == gone
    finally:
        assert checked.run("command_service", "topology").returncode == 0
    assert complaints(checked, managed) == []


def test_what_has_other_arguments_is_named_and_how_they_differ(
    checked: Deployment, sandbox: Sandbox, clerk: str
) -> None:
    api = sandbox.broker.api
    managed = sandbox.broker.management_url
    queue = f"/queues/{VHOST}/consent.log"
    limit = {"x-queue-type": "quorum", "x-delivery-limit": 100_000}
    other = {"durable": True, "arguments": {**limit, "x-message-ttl": 5}}
    try:
        api("DELETE", queue)
        api("PUT", queue, other)
        api("POST", f"/bindings/{VHOST}/e/consent.events/q/consent.log", {"routing_key": "#"})
        (seen,) = complaints(checked)
        assert "x-message-ttl" in seen
        assert "'consent.log'" in seen
        assert "30000" in seen
        (told,) = complaints(checked, managed)
        assert "different: queue consent.log has x-message-ttl 5, not 30000" in told
        assert "binding of consent.log to consent.events with '#', which is one too many" in told
        # Whoever may not declare sees that it is there, and is told what it did not see.
        shown = found(checked, rabbitmq_url=clerk)["topology"].detail
        assert shown.endswith("; arguments and bindings not compared, give --management")
    finally:
        api("DELETE", queue)
        assert checked.run("command_service", "topology").returncode == 0


def test_rights_that_the_brokers_user_lacks_are_named(
    checked: Deployment, sandbox: Sandbox, clerk: str
) -> None:
    def lacks() -> list[str]:
        return complaints(checked, rabbitmq_url=clerk)

    everything, log = lacks()
    assert log.startswith("log: not compared: ACCESS_REFUSED")
    assert everything.startswith("broker rights: the user may not read consent.unroutable, read ")
    assert everything.endswith("run what `python -m command_service permissions USER command-se"
                               "rvice` prints")  # fmt: skip
    some = {**NOTHING, "read": r"^consent\.(unroutable|log|commands\.[0-2])$", "write": "events"}
    sandbox.broker.api("PUT", f"/permissions/{VHOST}/{CLERK}", some)
    rest, _ = lacks()
    assert "may not read consent.commands.3, write the default exchange: run" in rest
    enough = {**NOTHING, "read": r"^consent\.", "write": r"^(consent\.events|amq\.default)$"}
    sandbox.broker.api("PUT", f"/permissions/{VHOST}/{CLERK}", enough)
    assert lacks() == []


async def test_looking_takes_no_message_and_sends_none(checked: Deployment) -> None:
    async with open_client(checked.rabbitmq_url, PARTITIONS) as client:
        await client.send("GrantConsent", b"{}", key="grant.0")
        sent: list[AbstractIncomingMessage] = []
        await client.subscribe("#", sent.append)
        assert await asyncio.to_thread(complaints, checked) == []
        queue = await client.channel.get_queue("consent.commands.0", ensure=False)
        received: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(received.put)
        async with asyncio.timeout(20):
            message = await received.get()
        assert not message.redelivered
        assert "x-delivery-count" not in message.headers
        await message.ack()
        assert not sent


@pytest.mark.parametrize("service", SERVICES)
def test_rights_that_the_databases_role_lacks_are_named(
    deployment: Deployment, sandbox: Sandbox, service: str
) -> None:
    setting, url, server = {
        "command_service": (
            "event_store_url", deployment.event_store_url, sandbox.event_store_server,
        ),
        "projection_service": (
            "read_model_url", deployment.read_model_url, sandbox.read_model_server,
        ),
    }[service]  # fmt: skip
    database = url.rsplit("/", 1)[1]
    table = {"command_service": "events", "projection_service": "patients"}[service]
    deployment.start("command_service").wait_ready()  # or the projection's `check` waits for one
    server.execute("CREATE ROLE check_worker LOGIN PASSWORD 'pw'")
    try:
        assert deployment.run(service, "migrate", "--worker-role", "check_worker").returncode == 0
        bound = {setting: with_login(url, "check_worker", "pw")}
        assert found(deployment, service, **bound)["database rights"].ok
        server.execute(f"REVOKE INSERT ON {table} FROM check_worker", database)
        lacking = found(deployment, service, **bound)["database rights"]
        assert not lacking.ok
        assert lacking.detail == (
            f"the role lacks INSERT on {table}: "
            "run `migrate --worker-role` with the role that it connects as"
        )
    finally:
        server.execute("DROP OWNED BY check_worker", database)
        server.execute("DROP ROLE check_worker")
