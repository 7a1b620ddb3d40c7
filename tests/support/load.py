"""A load of commands of which none may be lost, doubled or reordered, and the audit of it."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid4

import aio_pika
from aio_pika.abc import AbstractChannel

from shared.client.client import ConsentClient
from shared.errors import NoAnswer
from shared.messages.commands import GrantConsent, RevokeConsent
from shared.messages.replies import CommandAccepted, EventSummary, Outcome
from shared.values.partition import partition_of
from shared.values.several_hosts import one_by_one
from tests.support.amqp import Json
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch, folded_log, log_size, projected, read_model

PAUSE_S: Final = 0.1
CLIENTS: Final = 3
ANSWERED_WITHIN_S: Final = 4.0
"""After so long a command is sent again under its id, as whoever waits for it would do."""
SUBSCRIBER: Final = "audit"


@dataclass
class Lane:
    """A patient to whom consent is granted and revoked in turn: each must be the next version."""

    patient_id: str
    outcomes: list[Outcome] = field(default_factory=list)
    sent_again: int = 0

    async def run(self, client: ConsentClient, load: "Load") -> None:
        """Send one command after the other until the load ends."""
        while not load.ends.is_set():
            self.outcomes.append(await self._one(client, uuid4()))
            load.answered(self.patient_id)
            await asyncio.sleep(PAUSE_S)

    async def _one(self, client: ConsentClient, command_id: UUID) -> Outcome:
        while True:
            with suppress(NoAnswer):
                return await client.send(self._next(), command_id)
            self.sent_again += 1

    def _next(self) -> GrantConsent | RevokeConsent:
        terms = {"patient_id": self.patient_id, "target": "exams"}
        if len(self.outcomes) % 2 == 0:
            return GrantConsent(**terms, to_entity="doctor", to_id="d-1")  # type: ignore[arg-type]
        return RevokeConsent(**terms, from_entity="doctor", from_id="d-1")  # type: ignore[arg-type]


class Load:
    """Lanes in every partition, which send and wait all the time."""

    def __init__(self, deployment: Deployment, lanes_each: int) -> None:
        self.deployment = deployment
        self.ends = asyncio.Event()
        self.lanes = list(_lanes(deployment.partitions, lanes_each))
        self._answers: Counter[int] = Counter()

    def answered(self, patient_id: str) -> None:
        """Note an answer."""
        self._answers[partition_of(patient_id, self.deployment.partitions)] += 1

    async def goes_on(self, within: float = 60.0) -> None:
        """Return when every partition has answered what was sent from now on.

        Each lane has one command under way at most: of as many answers and one more, one was sent
        later.
        """
        before, lanes = self._answers.copy(), len(self.lanes) // self.deployment.partitions
        wanted = {
            number: before[number] + lanes + 1 for number in range(self.deployment.partitions)
        }

        async def all_answer() -> bool:
            return all(self._answers[number] >= least for number, least in wanted.items())

        await eventually(all_answer, within=within)

    async def end(self) -> None:
        """Compare what was answered with the log, the read model and what a subscriber got."""
        deployment = self.deployment
        for lane in self.lanes:
            versions = [
                outcome.version if isinstance(outcome, CommandAccepted) else outcome
                for outcome in lane.outcomes
            ]
            assert versions == list(range(1, len(versions) + 1)), lane.patient_id
        rows = await fetch(
            deployment.event_store_url, "SELECT * FROM events ORDER BY partition, position"
        )
        ours = {lane.patient_id for lane in self.lanes}
        all_rows, rows = len(rows), [row for row in rows if row["stream_id"] in ours]
        told = {str(event.id) for lane in self.lanes for event in _events(lane)}
        assert {str(row["event_id"]) for row in rows} == told
        assert len(rows) == sum(len(lane.outcomes) for lane in self.lanes)

        async def caught_up() -> bool:
            return await projected(deployment) == all_rows == await log_size(deployment)

        await eventually(caught_up, within=60)
        assert await read_model(deployment) == await folded_log(deployment)
        await self._compare_with_subscriber([(row["partition"], row["position"]) for row in rows])

    async def _compare_with_subscriber(self, log: list[tuple[int, int]]) -> None:
        """What comes again was seen before; the first of each comes in the order of the log."""
        got: dict[int, list[int]] = defaultdict(list)
        for event in await _received(self.deployment.rabbitmq_url):
            partition, position = int(event["partition"]), int(event["position"])
            if not got[partition] or position > max(got[partition]):
                got[partition].append(position)
        for partition in range(self.deployment.partitions):
            wanted = [position for number, position in log if number == partition]
            assert got[partition] == wanted, (
                f"partition {partition}: lacks {sorted(set(wanted) - set(got[partition]))},"
                f" has {sorted(set(got[partition]) - set(wanted))} of {wanted[0]} to {wanted[-1]}"
            )


def _events(lane: Lane) -> list[EventSummary]:
    return [
        event
        for outcome in lane.outcomes
        if isinstance(outcome, CommandAccepted)
        for event in outcome.events
    ]


def _lanes(partitions: int, each: int) -> list[Lane]:
    found: dict[int, list[Lane]] = defaultdict(list)
    number, tag = 0, uuid4().hex[:8]
    while len(found) < partitions or min(map(len, found.values())) < each:
        patient_id, number = f"{tag}-{number}", number + 1
        found[partition_of(patient_id, partitions)].append(Lane(patient_id))
    return [lane for lanes in found.values() for lane in lanes[:each]]


@asynccontextmanager
async def under_load(deployment: Deployment, *, lanes_each: int = 3) -> AsyncIterator[Load]:
    """Send commands for as long as the block lasts, and audit in the end what came of them."""
    await _declare_subscriber(deployment.rabbitmq_url)
    load = Load(deployment, lanes_each)
    url, partitions = deployment.rabbitmq_url, deployment.partitions
    async with AsyncExitStack() as clients, asyncio.TaskGroup() as group:
        opened = [
            await clients.enter_async_context(
                ConsentClient.connect(url, partitions=partitions, within=ANSWERED_WITHIN_S)
            )
            for _ in range(CLIENTS)
        ]
        sending = [
            group.create_task(lane.run(opened[number % CLIENTS], load))
            for number, lane in enumerate(load.lanes)
        ]
        await load.goes_on()
        yield load
        await load.goes_on()
        load.ends.set()
        await asyncio.gather(*sending)
    await load.end()


async def _declare_subscriber(url: str) -> None:
    async with _channel(url) as channel:
        queue = await channel.declare_queue(
            SUBSCRIBER, durable=True, arguments={"x-queue-type": "quorum"}
        )
        await queue.bind("consent.events", "#")


async def _received(url: str) -> list[Json]:
    """Take all events out of the subscriber's queue, in their order."""
    found = []
    async with _channel(url) as channel:
        queue = await channel.get_queue(SUBSCRIBER, ensure=False)
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            found.append(json.loads(message.body))
        await queue.delete(if_unused=False, if_empty=False)
    return found


@asynccontextmanager
async def _channel(url: str) -> AsyncIterator[AbstractChannel]:
    """Open a channel at the first host that answers."""
    for host in one_by_one(url):
        try:
            connection = await aio_pika.connect(host)
        except OSError:
            continue
        async with connection:
            yield await connection.channel()
            return
    raise AssertionError("no host answers")
