"""A pooler that lends whole sessions is served as it comes; one that shares them is refused."""

import asyncio
from contextlib import ExitStack

from shared.errors.connection import WORKER_CONNECTIONS
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.servers import USER
from tests.servers.test_surroundings import SETTING, the_line, url_of, waits_for
from tests.support.amqp import open_client
from tests.support.deployment import SERVICES, Deployment
from tests.support.eventually import eventually
from tests.support.facts import folded_log, projected, read_model
from tests.support.pooler import NEEDS_POOLER, pooler, through

pytestmark = NEEDS_POOLER


async def test_over_a_pooler_of_sessions_everything_works_with_its_own_settings(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    servers = (sandbox.event_store_server, sandbox.read_model_server)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(pooler(server, USER, mode="session")) for server in servers
        )
        direct = deployment.event_store_url, deployment.read_model_url
        deployment.event_store_url = through(first, direct[0])
        deployment.read_model_url = through(second, direct[1])
        deployment.prepare()
        deployment.start_both()
        async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
            outcomes = [await client.command("GrantConsent", f"p-{n}") for n in range(40)]
        assert {one["status"] for one in outcomes} == {"accepted"}

        async def all_projected() -> bool:
            return await projected(deployment) == len(outcomes)

        await eventually(all_projected)
        rebuilt = await asyncio.to_thread(deployment.run, "projection_service", "rebuild")
        assert rebuilt.returncode == 0, rebuilt.stderr
        assert await read_model(deployment) == await folded_log(deployment)
        for service in SERVICES:
            told = await asyncio.to_thread(deployment.run, service, "check")
            assert told.returncode == 0, told.stdout
        deployment.close()
        deployment.event_store_url, deployment.read_model_url = direct


async def test_a_pooler_that_shares_sessions_is_refused_by_migrate_check_and_worker(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    for service, server in zip(
        SERVICES, (sandbox.event_store_server, sandbox.read_model_server), strict=True
    ):
        with pooler(server, USER, mode="transaction") as pool:
            more = {SETTING[service]: through(pool, url_of(deployment, service))}
            for verb in ("migrate", "run"):
                done = await asyncio.to_thread(deployment.run, service, verb, **more)
                assert done.returncode == 2, done.stderr
                line = the_line(done.stderr)
                assert "lends its connections by the transaction" in line
                assert "set pool_mode = session there" in line
            told = await asyncio.to_thread(deployment.run, service, "check", **more)
            assert told.returncode == 1
            assert "lends its connections by the transaction" in told.stdout


async def test_a_parameter_that_the_pooler_does_not_know_is_named(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    with pooler(sandbox.event_store_server, USER, mode="session") as pool:
        url = f"{through(pool, deployment.event_store_url)}?jit=off"
        done = await asyncio.to_thread(
            deployment.run, "command_service", "migrate", EVENT_STORE_URL=url
        )
    assert done.returncode == 2
    assert "pooler refuses: unsupported startup parameter: jit" in done.stderr
    assert "EVENT_STORE_URL" in done.stderr


async def test_a_pool_that_is_smaller_than_a_worker_needs_is_told_from_a_broker_that_is_away(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    with pooler(
        sandbox.event_store_server, USER, mode="session", size=WORKER_CONNECTIONS - 2
    ) as pool:
        url = through(pool, deployment.event_store_url)
        worker = deployment.start("command_service", EVENT_STORE_URL=f"{url}?connect_timeout=2")
        await waits_for(worker, "database", "does not answer within 2 s")
        deployment.close()
