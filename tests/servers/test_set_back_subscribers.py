"""A subscriber whose log was set back: told what is no more, it begins where the two part."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage

from shared.client import CloudEvent, LogPlace, LogSetBack, SetBack, place_of, subscribe
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, Json
from tests.support.backups import Backup
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch

PATIENT = "p-1"
PARTITION = 3
"""Of that patient."""


@dataclass
class Notes:
    """What a subscriber keeps: the ids of events by their places, and how far it is."""

    taken: dict[int, str] = field(default_factory=dict)
    stored: dict[int, LogPlace] = field(default_factory=dict)
    told: list[SetBack] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    async def handle(self, event: CloudEvent) -> None:
        if event.partition != PARTITION:
            return
        if event.position in self.taken:
            self.twice.append(event.id)
        self.taken[event.position] = event.id
        self.stored[event.partition] = place_of(event)

    async def positions(self) -> dict[int, LogPlace]:
        return dict(self.stored)

    async def on_set_back(self, found: SetBack) -> None:
        assert found.parted_at is not None
        self.told.append(found)
        for position in range(found.parted_at + 1, found.position + 1):
            del self.taken[position]
        self.stored[found.partition] = LogPlace(found.parted_at, generation=None)


@asynccontextmanager
async def subscribed(
    deployment: Deployment,
    notes: Notes,
    **options: Any,  # noqa: ANN401
) -> AsyncIterator["asyncio.Task[Any]"]:
    task = asyncio.create_task(
        subscribe(
            deployment.rabbitmq_url, "consequences", notes.handle, notes.positions,
            partitions=PARTITIONS, **options,
        )
    )  # fmt: skip
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, LogSetBack):
            await task


@pytest.fixture
def backups(sandbox: Sandbox) -> Iterator[list[Backup]]:
    taken: list[Backup] = []
    yield taken
    for backup in taken:
        backup.drop()


async def the_log(deployment: Deployment) -> dict[int, str]:
    rows = await fetch(
        deployment.event_store_url,
        f"SELECT position, event_id FROM events WHERE partition = {PARTITION}",  # noqa: S608
    )
    return {row["position"]: str(row["event_id"]) for row in rows}


async def has_all(deployment: Deployment, notes: Notes) -> bool:
    return notes.taken == await the_log(deployment)


async def granted(client: Client, *doctors: str) -> None:
    for doctor in doctors:
        assert (await client.command("GrantConsent", PATIENT, id_=doctor))["status"] == "accepted"


async def lost_some(
    sandbox: Sandbox,
    deployment: Deployment,
    client: Client,
    backups: list[Backup],
    notes: Notes,
) -> Backup:
    """Have a subscriber take three events, of which the backup has one."""
    worker = deployment.start("command_service")
    worker.wait_ready()
    await granted(client, "d-kept")
    backups.append(Backup.take(sandbox.event_store_server, deployment.event_store_url))
    worker.wait_ready()
    await granted(client, "d-lost", "d-lost-too")
    async with subscribed(deployment, notes):
        await eventually(lambda: has_all(deployment, notes))
    assert len(notes.taken) == 3
    deployment.restart(worker)
    return backups[0]


async def test_it_is_told_once_an_operator_has_decided_and_goes_on_with_the_log(
    sandbox: Sandbox, deployment: Deployment, client: Client, backups: list[Backup]
) -> None:
    notes = Notes()
    backup = await lost_some(sandbox, deployment, client, backups, notes)
    async with subscribed(deployment, notes, on_set_back=notes.on_set_back) as task:
        backup.restore()
        (worker,) = deployment.workers
        await eventually(lambda: reports(worker.get), within=60)
        assert not notes.told
        assert len(notes.taken) == 3
        assert deployment.run("command_service", "accept-log").returncode == 0
        await granted(client, "d-1", "d-2", "d-3", "d-4")
        await eventually(lambda: has_all(deployment, notes), within=60)
        assert not task.done()
    assert [(found.position, found.parted_at) for found in notes.told] == [(3, 1)]
    assert not notes.twice


async def reports(get: Any) -> bool:  # noqa: ANN401
    return "log_set_back" in get("/health/ready")[1]


async def test_it_notices_after_it_was_away_and_the_log_has_grown_past_what_it_took(
    sandbox: Sandbox, deployment: Deployment, client: Client, backups: list[Backup]
) -> None:
    notes = Notes()
    backup = await lost_some(sandbox, deployment, client, backups, notes)
    backup.restore()
    assert deployment.run("command_service", "accept-log").returncode == 0
    deployment.workers[0].wait_ready()
    await granted(client, "d-1", "d-2", "d-3", "d-4")
    async with subscribed(deployment, notes, on_set_back=notes.on_set_back):
        await eventually(lambda: has_all(deployment, notes), within=60)
    assert [(found.position, found.parted_at) for found in notes.told] == [(3, 1)]
    async with subscribed(deployment, notes):  # and it is over
        await granted(client, "d-5")
        await eventually(lambda: has_all(deployment, notes))


async def test_one_that_does_not_want_to_know_ends_and_has_taken_nothing(
    sandbox: Sandbox, deployment: Deployment, client: Client, backups: list[Backup]
) -> None:
    notes = Notes()
    backup = await lost_some(sandbox, deployment, client, backups, notes)
    (worker,) = deployment.workers
    before = dict(notes.taken)
    worker.stop()
    backup.restore()
    deployment.start("command_service", COMMANDS_WHEN_SET_BACK="go_on").wait_ready()
    await granted(client, "d-1", "d-2", "d-3", "d-4")
    async with subscribed(deployment, notes) as task:
        with pytest.raises(LogSetBack, match="partition 3 was set back"):
            async with asyncio.timeout(60):
                await task
    assert notes.taken == before


async def test_one_whose_log_lost_nothing_it_took_goes_on_as_if_nothing_were(
    sandbox: Sandbox, deployment: Deployment, client: Client, backups: list[Backup]
) -> None:
    notes = Notes()
    backup = await lost_some(sandbox, deployment, client, backups, notes)
    for position in (2, 3):
        del notes.taken[position]
    log = await the_log(deployment)
    notes.stored[PARTITION] = LogPlace(1, log[1])
    backup.restore()
    assert deployment.run("command_service", "accept-log").returncode == 0
    async with subscribed(deployment, notes):
        await granted(client, "d-1", "d-2")
        await eventually(lambda: has_all(deployment, notes), within=60)
    assert not notes.told


async def test_events_tell_their_generation_from_the_second_on(
    deployment: Deployment, client: Client
) -> None:
    seen: dict[str, Json] = {}  # by position: what was published just before comes once more

    def see(message: AbstractIncomingMessage) -> None:
        event = json.loads(message.body)
        seen[event["position"]] = event

    await client.subscribe("#", see)
    deployment.start("command_service").wait_ready()
    await granted(client, "d-1")
    done = deployment.run("command_service", "accept-log", "--json")
    generation = json.loads(done.stdout)["generation"]
    await granted(client, "d-2")

    async def both() -> bool:
        return len(seen) == 2

    await eventually(both)
    assert [event.get("generation") for event in seen.values()] == [None, generation]
    page = await client.query("ReadEvents", partition=PARTITION)
    assert ["generation" in event for event in page["events"]] == [False, True]
    assert page["generations"] == [{"generation": generation, "after_position": 1}]
