"""A URL of the broker may name several hosts, of which one will do."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from shared.client.client import ConsentClient
from shared.values.several_hosts import one_by_one, place_of_broker
from tests.chaos.links import Disorder, open_wires
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.deployment import Deployment

NOBODY = "127.0.0.1:1"
CONSENT = "from shared.cli.consent import main; main()"


@pytest.fixture
def silent() -> Iterator[str]:
    """Give a host that takes connections, and never says a word, as a frozen one does."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def several(deployment: Deployment, silent: str) -> Deployment:
    """Give a deployment whose URL begins with hosts that are of no use."""
    deployment.rabbitmq_url = with_hosts(deployment.rabbitmq_url, NOBODY, silent)
    return deployment


def with_hosts(url: str, *hosts: str) -> str:
    login, _, place = url.rpartition("@")
    return f"{login}@{','.join(hosts)},{place}"


def test_each_host_gets_the_whole_url() -> None:
    text = "amqps://me:p%40w@a:1,b,[::1]:5/v%2Fh?cafile=/x,y"
    assert one_by_one(text) == tuple(
        f"amqps://me:p%40w@{host}/v%2Fh?cafile=/x,y" for host in ("a:1", "b", "[::1]:5")
    )
    assert place_of_broker(text) == "a:1,b:5672,::1:5/v/h"


@pytest.mark.parametrize("hosts", ["", "a,", ",a", "a:port", "a:70000", "a,b:x"])
async def test_what_names_no_hosts_is_refused(deployment: Deployment, hosts: str) -> None:
    url = f"amqp://somebody:secret@{hosts}/"
    told = await asyncio.to_thread(deployment.run, "command_service", "topology", RABBITMQ_URL=url)
    assert told.returncode == 2
    assert "RABBITMQ_URL is wrong" in told.stderr
    assert "secret" not in told.stderr


async def test_whoever_connects_gets_the_host_that_answers(several: Deployment) -> None:
    several.start_both()
    url = several.rabbitmq_url
    async with ConsentClient.connect(url, partitions=PARTITIONS, within=60) as client:
        assert (await client.grant("p-1", "doctor", "d-1", "exams")).status == "accepted"
        assert (
            await client.has_consent("p-1", "doctor", "d-1", "exams", min_version=1)
        ).has_consent
    shown = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CONSENT, "list", "p-1"),
        env=several.environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert b"d-1" in (await shown.communicate())[0]


async def test_whoever_waits_at_a_host_that_falls_silent_is_answered_by_way_of_another(
    deployment: Deployment,
) -> None:
    with open_wires() as wires:
        one, other = wires.lay(deployment.rabbitmq_url), wires.lay(deployment.rabbitmq_url)
        other.disturb(Disorder("refuse"))
        url = with_hosts(one.url, other.url.rpartition("@")[2].partition("/")[0])
        async with ConsentClient.connect(url, partitions=PARTITIONS, within=60) as client:
            other.disturb(None)
            one.disturb(Disorder("silence"))
            asking = asyncio.create_task(client.grant("p-1", "doctor", "d-1", "exams"))
            await asyncio.to_thread(deployment.start("command_service").wait_ready)
            assert (await asking).status == "accepted"


async def test_topology_and_check_take_several_hosts_of_both_kinds(
    several: Deployment, sandbox: Sandbox
) -> None:
    managed = {"RABBITMQ_MANAGEMENT_URL": with_hosts(sandbox.broker.management_url, NOBODY)}
    declared = await asyncio.to_thread(several.run, "command_service", "topology", **managed)
    assert (declared.returncode, declared.stderr) == (0, "")
    checked = await asyncio.to_thread(several.run, "command_service", "check", **managed)
    assert f"broker {NOBODY}," in checked.stdout
    assert "all as declared" in checked.stdout, checked.stdout
