"""One deployment is one event store, one virtual host, one read model: all others are refused."""

from collections.abc import Iterator
from dataclasses import replace

import asyncpg
import pytest

from command_service.log_identity.deployment import check_deployment, declare_deployment
from shared.messages import names
from shared.rabbitmq import deployment_mark
from shared.rabbitmq.connection import connect
from shared.rabbitmq.deployment_mark import check_log_mark
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import open_client
from tests.support.deployment import Deployment, ServiceName, open_deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch

ANOTHER = "belongs to another deployment"


@pytest.fixture
def other(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    """Give a second deployment, with a log of its own, that was declared in its virtual host."""
    with open_deployment(sandbox, "another", partitions=PARTITIONS, prepared_from=migrated) as made:
        name = made.event_store_url.rsplit("/", 1)[1]
        sandbox.event_store_server.execute(
            "UPDATE log_identity SET log_id = gen_random_uuid()", name
        )
        made.declare()
        yield made


def refused(deployment: Deployment, *arguments: str) -> str:
    """Return why a command is refused as a wrong configuration, in one line."""
    done = deployment.run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def ends(deployment: Deployment, service: ServiceName) -> str:
    """Return what a worker says that ends because of its configuration."""
    worker = deployment.start(service)
    assert worker.process.wait(60) == 2, worker.log
    return worker.log.splitlines()[-1]


def checked(deployment: Deployment, service: ServiceName) -> str:
    done = deployment.run(service, "check")
    assert done.returncode == 1, done.stdout
    return done.stdout


async def test_a_second_event_store_is_refused_by_a_virtual_host_that_has_one(
    deployment: Deployment, other: Deployment
) -> None:
    mixed = replace(other, rabbitmq_url=deployment.rabbitmq_url, workers=[])
    assert ANOTHER in refused(mixed, "command_service", "topology")
    assert ANOTHER in refused(mixed, "command_service", "migrate")
    assert ANOTHER in ends(mixed, "command_service")
    assert ANOTHER in checked(mixed, "command_service")
    deployment.start("command_service").wait_ready()


async def test_a_read_model_of_another_log_is_refused(
    deployment: Deployment, other: Deployment
) -> None:
    deployment.start_both()
    await eventually(lambda: follows_a_log(deployment))
    deployment.close()
    mixed = replace(other, read_model_url=deployment.read_model_url, workers=[])
    assert ANOTHER in refused(mixed, "projection_service", "migrate")
    assert ANOTHER in ends(mixed, "projection_service")
    assert ANOTHER in checked(mixed, "projection_service")
    mixed.start("command_service").wait_ready()
    assert "leads to the log" in refused(mixed, "projection_service", "rebuild")
    mixed.close()


async def follows_a_log(deployment: Deployment) -> bool:
    return bool(await fetch(deployment.read_model_url, "SELECT FROM followed_log"))


async def test_an_event_store_at_work_is_refused_by_a_second_virtual_host(
    sandbox: Sandbox, deployment: Deployment
) -> None:
    worker = deployment.start("command_service")
    worker.wait_ready()
    second = replace(deployment, rabbitmq_url=sandbox.broker.create_vhost("second"), workers=[])
    try:
        assert "at work with another virtual host" in refused(second, "command_service", "topology")
        assert worker.stop() == 0
        moved = second.run("command_service", "topology")
        assert moved.returncode == 0, moved.stderr
        second.start("command_service").wait_ready()
        async with open_client(second.rabbitmq_url, PARTITIONS) as client:
            assert (await client.command("GrantConsent", "p-1"))["status"] == "accepted"
        assert "works with another virtual host" in ends(deployment, "command_service")
    finally:
        second.close()
        sandbox.broker.delete_vhost("second")


async def test_a_virtual_host_whose_topology_is_only_half_declared_is_not_taken_for_anothers(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = deployment.event_store_url
    (identity,) = await fetch(url, "SELECT log_id, virtual_host FROM log_identity")
    async with connect(deployment.rabbitmq_url, name="test") as broker:
        channel = await broker.channel()
        await channel.exchange_delete(names.virtual_host_mark(*identity))

        async def declares_the_rest(_: float) -> None:
            await declare_deployment(deployment.rabbitmq_url, url, PARTITIONS)

        monkeypatch.setattr(deployment_mark, "sleep", declares_the_rest)
        database = await asyncpg.connect(url)
        assert (await check_deployment(database, broker)).log_id == identity["log_id"]
        await database.close()
        await channel.exchange_delete(names.log_mark(identity["log_id"]))
        await check_log_mark(broker, identity["log_id"])


async def test_topology_again_changes_nothing_beneath_workers(deployment: Deployment) -> None:
    deployment.start_both()
    again = deployment.run("command_service", "topology")
    assert again.returncode == 0, again.stderr
    for service in ("command_service", "projection_service"):
        found = deployment.run(service, "check")
        assert found.returncode == 0, found.stdout
        assert "identity: " in found.stdout


async def test_a_topology_without_an_event_store_works_and_says_what_it_does_not_guard(
    sandbox: Sandbox,
) -> None:
    with open_deployment(sandbox, "unbound", partitions=PARTITIONS) as made:
        for known in ({"EVENT_STORE_URL": ""}, {}):
            early = made.run("command_service", "topology", **known)
            assert early.returncode == 0, early.stderr
            assert "nobody notices a second deployment" in early.stderr
        for service in ("command_service", "projection_service"):
            assert made.run(service, "migrate").returncode == 0
        worker, _ = made.start_both()
        assert "deployment.unbound" in worker.log
        async with open_client(made.rabbitmq_url, PARTITIONS) as client:
            assert (await client.command("GrantConsent", "p-1"))["status"] == "accepted"
        assert "run `python -m command_service topology`" in checked(made, "command_service")

        bound = made.run("command_service", "topology")
        assert (bound.returncode, bound.stderr) == (0, "")
        assert made.run("command_service", "check").returncode == 0
