"""What a client waits for: no longer than it said, and nobody works on what it gave up."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest

from shared.client.client import ConsentClient
from shared.errors import NoAnswer
from shared.values.partition import partition_of
from tests.conftest import PARTITIONS
from tests.servers.test_cli import consent
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

WITHIN_S: Final = 0.4
SOON_S: Final = 6.0
"""Below the ten seconds that connecting may take."""


@pytest.fixture
async def black_hole() -> AsyncIterator[str]:
    """A broker that takes connections and says nothing."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    yield f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    server.close()


async def test_a_client_waits_no_longer_than_it_said_while_it_connects(black_hole: str) -> None:
    client = ConsentClient(black_hole, within=WITHIN_S)
    async with asyncio.timeout(SOON_S):
        with pytest.raises(NoAnswer, match=r"within 0\.4 s"):
            await client.list_consents("p-1")
        with pytest.raises(TimeoutError):
            async with ConsentClient.connect(black_hole, within=WITHIN_S):
                pass


async def test_a_query_that_nobody_waits_for_any_more_is_not_answered(
    deployment: Deployment, client: Client
) -> None:
    url = deployment.rabbitmq_url
    async with ConsentClient.connect(url, partitions=PARTITIONS, within=5 * WITHIN_S) as asking:
        with pytest.raises(NoAnswer):
            await asking.list_consents("p-1")
        with pytest.raises(NoAnswer):
            await asking.grant("p-1", "doctor", "d-1", "exams")

    async def gone() -> bool:
        return await client.length("consent.queries") == 0

    await eventually(gone, within=SOON_S)
    waiting = await client.length(f"consent.commands.{partition_of('p-1', PARTITIONS)}")
    assert waiting == 1, "a command is decided however late"


async def test_an_event_of_a_newer_version_is_shown_as_far_as_it_can_be_read(
    deployment: Deployment, client: Client
) -> None:
    newer = ("-m", "tests.support.next_version", "command_service", "run")
    deployment.start("command_service", program=newer).wait_ready()
    await client.command("GrantConsent", "p-1")
    await client.command("AskConsent", "p-1", id_="d-2")
    shown = consent(deployment, "events", str(partition_of("p-1", PARTITIONS)))
    assert shown.returncode == 0, shown.stderr
    assert "ConsentGranted" in shown.stdout
    assert "can't read" in " ".join(shown.stdout.split())
    assert "ConsentAsked" in shown.stdout
