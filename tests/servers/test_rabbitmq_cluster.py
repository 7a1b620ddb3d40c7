"""The loss of any one node of a RabbitMQ cluster loses nothing that was answered, nor the order."""

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from shared.rabbitmq.topology import queues
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.cluster import Cluster, open_cluster
from tests.support.deployment import SERVICES, Deployment, open_deployment
from tests.support.eventually import eventually
from tests.support.load import under_load

VHOST = "clustered"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def clustered(sandbox: Sandbox, migrated: str, cluster: Cluster) -> Iterator[Deployment]:
    """Run two workers of each kind on a cluster."""
    servers = Sandbox(cluster, sandbox.event_store_server, sandbox.read_model_server, lambda: None)
    with open_deployment(servers, VHOST, partitions=PARTITIONS, prepared_from=migrated) as made:
        assert made.run("command_service", "topology").returncode == 0
        for service in SERVICES * 2:
            made.start(service)
        for worker in made.workers:
            worker.wait_ready()
        yield made


def test_no_node_leads_all_queues(clustered: Deployment, cluster: Cluster) -> None:
    leaders = {cluster.leader_of(VHOST, queue.name) for queue in queues(PARTITIONS)}
    assert len(leaders) == len(cluster.nodes)


async def test_any_node_may_be_killed(clustered: Deployment, cluster: Cluster) -> None:
    async with under_load(clustered) as load:
        for node in cluster.nodes:
            await asyncio.to_thread(node.kill)
            await load.goes_on()
            print("kill", {k: round(v, 1) for k, v in load.longest_pause.items()})
            checked = await asyncio.to_thread(clustered.run, "projection_service", "check")
            assert checked.returncode == 0, checked.stdout
            await asyncio.to_thread(node.start)
            await load.goes_on()
            print("back", {k: round(v, 1) for k, v in load.longest_pause.items()})
            load.forget_pauses()
            await eventually(partial(all_are_ready, clustered))


async def test_all_nodes_may_be_stopped_one_after_the_other(
    clustered: Deployment, cluster: Cluster
) -> None:
    async with under_load(clustered) as load:
        for node in cluster.nodes:
            await asyncio.to_thread(node.stop)
            await load.goes_on()
            print("stop", {k: round(v, 1) for k, v in load.longest_pause.items()})
            await asyncio.to_thread(node.start)
            await load.goes_on()
            print("back", {k: round(v, 1) for k, v in load.longest_pause.items()})
            load.forget_pauses()


async def test_a_node_may_freeze(clustered: Deployment, cluster: Cluster) -> None:
    async with under_load(clustered) as load:
        frozen = cluster.nodes[0]
        frozen.freeze()
        try:
            await load.goes_on()
            print("freeze", {k: round(v, 1) for k, v in load.longest_pause.items()})
            await asyncio.sleep(10)
            await load.goes_on()
            print("freeze", {k: round(v, 1) for k, v in load.longest_pause.items()})
        finally:
            frozen.thaw()
        await asyncio.to_thread(frozen.kill)
        await asyncio.to_thread(frozen.start)


async def all_are_ready(deployment: Deployment) -> bool:
    answers = [await asyncio.to_thread(one.get, "/health/ready") for one in deployment.workers]
    return all(status == 200 for status, _ in answers)
