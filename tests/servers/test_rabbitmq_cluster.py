"""The loss of any one node of a RabbitMQ cluster loses nothing that was answered, nor the order."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.cluster import Cluster, open_cluster
from tests.sandbox.programs import RabbitmqProgram
from tests.support.deployment import SERVICES, Deployment, open_deployment
from tests.support.eventually import eventually
from tests.support.load import under_load

VHOST = "clustered"
pytestmark = pytest.mark.skipif(
    "CONSENT_CLUSTER" not in os.environ,
    reason="three nodes of RabbitMQ need a machine to themselves: set CONSENT_CLUSTER=1",
)


@pytest.mark.timeout(600)
def test_a_minute_of_chaos_on_a_cluster_loses_doubles_and_reorders_nothing() -> None:
    """With servers of its own: first, while no others run."""
    round_ = [sys.executable, "-m", "tests.chaos", "--cluster", "--seconds", "60", "--seed", "1"]
    done = subprocess.run(round_, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


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
    leaders = {queue["leader"] for queue in cluster.queues(VHOST) if queue["type"] == "quorum"}
    assert len(leaders) == len(cluster.nodes)


@pytest.mark.parametrize("lose", [RabbitmqProgram.stop, RabbitmqProgram.kill])
async def test_all_nodes_may_be_lost_one_after_the_other(
    clustered: Deployment, cluster: Cluster, lose: Callable[[RabbitmqProgram], None]
) -> None:
    async with under_load(clustered) as load:
        for node in cluster.nodes:
            await asyncio.to_thread(lose, node)
            await load.goes_on()
            await comes_back(cluster, node)
            await load.goes_on()


async def test_the_node_where_the_topology_was_declared_may_be_killed(
    clustered: Deployment, cluster: Cluster
) -> None:
    async with under_load(clustered) as load:
        first = cluster.nodes[0]
        await asyncio.to_thread(first.kill)
        await load.goes_on()
        for service in SERVICES:
            checked = await asyncio.to_thread(clustered.run, service, "check")
            assert checked.returncode == 0, checked.stdout
        declared = await asyncio.to_thread(clustered.run, "command_service", "topology")
        assert declared.returncode == 0, declared.stderr
        young = clustered.start("projection_service")
        await asyncio.to_thread(young.wait_ready)
        await comes_back(cluster, first)
        await load.goes_on()


async def test_a_node_may_freeze(clustered: Deployment, cluster: Cluster) -> None:
    async with under_load(clustered) as load:
        frozen = cluster.nodes[1]
        frozen.freeze()
        try:
            await load.goes_on()
            young = clustered.start("command_service")
            await asyncio.to_thread(young.wait_ready)
        finally:
            frozen.thaw()
        await asyncio.to_thread(frozen.kill)  # RabbitMQ 3.10 stays apart from the others else
        await comes_back(cluster, frozen)


async def comes_back(cluster: Cluster, node: RabbitmqProgram) -> None:
    """Start a node, and return when its replicas are part of every queue again."""
    await asyncio.to_thread(node.start)

    async def is_whole() -> bool:
        return await asyncio.to_thread(cluster.is_whole, VHOST)

    await eventually(is_whole, within=60, every=0.5)
