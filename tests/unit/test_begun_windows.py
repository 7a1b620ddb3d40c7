"""Events are written by who has appended them: nothing follows before their fate is known."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from command_service import insistence, publisher
from command_service.publisher import Outbox, Publisher
from command_service.store.event_store import EventStore, Head
from command_service.store.recorded_event import RecordedEvent
from shared.rabbitmq.publishing import Outgoing, Refused, Why
from shared.telemetry.readiness import Readiness
from shared.values.partition import Lease

PARTITION = 0
TURNS = 20
"""Of the loop, until nothing moves any more."""

Positions = list[int]


def event(position: int, patient: str, partition: int = PARTITION) -> RecordedEvent:
    data = {"patient_id": patient, "to_entity": "doctor", "to_id": "d-1", "target": "exams"}
    return RecordedEvent(
        partition, position, patient, 1, uuid4(), "ConsentGranted", 1, json.dumps(data),
        datetime.now(UTC), "c", uuid4(), None, None, None,
    )  # fmt: skip


def position_of(message: Outgoing) -> int:
    position: int = json.loads(message.body)["position"]
    return position


class Begun:
    """A window in flight, whose fate a test decides."""

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self.messages = messages
        self._told = asyncio.Event()
        self._why: Why | None = None

    def confirm(self) -> None:
        self._told.set()

    def refuse(self, why: Why) -> None:
        self._why = why
        self._told.set()

    async def fate(self) -> list[Refused]:
        await self._told.wait()
        return [Refused(message, self._why) for message in self.messages] if self._why else []


class Exchange:
    """What the broker is to a publisher, but for when it says what became of a window."""

    def __init__(self) -> None:
        self.offers: list[Positions] = []
        """What was written, write after write."""
        self.begun: list[Begun] = []
        self.is_full = False

    def begin(self, messages: Sequence[Outgoing]) -> Begun:
        self.offers.append([position_of(message) for message in messages])
        self.begun.append(Begun(messages))
        return self.begun[-1]

    async def publish(
        self, messages: Sequence[Outgoing], *, within: float, begun: Begun | None = None
    ) -> list[Refused]:
        if begun:
            async with asyncio.timeout(within):
                return await begun.fate()
        if messages:
            self.offers.append([position_of(message) for message in messages])
        return [Refused(message, Why.REFUSED) for message in messages] if self.is_full else []


class Log(EventStore):
    """A log in memory, as far as a publisher reads it."""

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(nothing)
        self.events: list[RecordedEvent] = []

    async def read_head(self, partition: int) -> Head:
        assert partition >= 0
        return Head(0, 0)

    async def read_log(
        self, partition: int, after_position: int, most: int, patient_id: str | None = None
    ) -> list[RecordedEvent]:
        assert patient_id is None
        beyond = [one for one in self.events if one.partition == partition]
        return [one for one in beyond if one.position > after_position][:most]


class Publishing:
    """A publisher that runs."""

    def __init__(self) -> None:
        self.exchange, self.straight, self.log = Exchange(), Exchange(), Log()
        given: Any = (self.exchange, self.straight, self.log, lambda: True, Readiness(), None)
        self.publisher = Publisher(*given)

    def outbox(self, partition: int = PARTITION) -> Outbox:
        return self.publisher._outboxes[partition]  # noqa: SLF001 - nobody else is told

    async def add(self, *events: RecordedEvent) -> None:
        """Do as a batch does that has appended these."""
        self.log.events += events
        self.publisher.add(events)
        self.publisher.begin()
        await turns()


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(partitions: int = 1) -> AsyncIterator[Publishing]:
    made = Publishing()
    for number in range(partitions):
        await made.publisher.open(Lease(number, 1))
    task = asyncio.create_task(made.publisher.run())
    await turns()
    yield made
    assert not task.done(), task
    task.cancel()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for pauses in ("ON_REFUSED", "ON_UNANSWERED"):
        monkeypatch.setattr(insistence, pauses, (0.0, 0.0))
    monkeypatch.setattr(publisher, "RETRY_S", 0.0)


async def test_nothing_begins_while_something_is_in_flight() -> None:
    async with running() as made:
        await made.add(event(1, "p-1"))
        await made.add(event(2, "p-2"))
        await made.add(event(3, "p-1"))
        assert (made.exchange.offers, made.outbox().published) == ([[1]], 0)
        made.exchange.begun[0].confirm()
        await turns()
        assert (made.exchange.offers, made.outbox().published) == ([[1], [2, 3]], 3)


@pytest.mark.parametrize("why", [Why.REFUSED, Why.UNANSWERED])
async def test_what_is_refused_of_it_is_offered_again_before_anything_follows(why: Why) -> None:
    async with running() as made:
        await made.add(event(1, "p-1"), event(2, "p-2"))
        await made.add(event(3, "p-3"))
        made.exchange.begun[0].refuse(why)
        await turns()
        assert made.straight.offers == [[1, 2]]
        assert made.exchange.offers == [[1, 2], [1], [2], [3]]
        assert made.outbox().published == 3


async def test_what_the_projections_queue_refuses_too_holds_the_published_part_back() -> None:
    async with running() as made:
        await made.add(event(1, "p-1"))
        made.straight.is_full = True
        made.exchange.begun[0].refuse(Why.REFUSED)
        await turns()
        await made.add(event(2, "p-2"))
        made.exchange.begun[1].confirm()
        await turns()
        assert (made.outbox().published, made.outbox().offered) == (0, 2)


async def test_without_the_exchange_it_is_published_again_with_what_follows() -> None:
    async with running() as made:
        await made.add(event(1, "p-1"))
        await made.add(event(2, "p-2"))
        made.exchange.begun[0].refuse(Why.NO_EXCHANGE)
        await turns()
        assert (made.exchange.offers, made.outbox().published) == ([[1], [1, 2]], 2)


async def test_nothing_begins_where_a_partition_must_be_read_from_the_log_first() -> None:
    async with running(partitions=2) as made:
        made.log.events += [event(1, "q-1", partition=1)]
        await made.add(event(2, "q-2", partition=1), event(1, "p-1"))
        assert made.exchange.begun == []
        assert sorted(made.exchange.offers[0]) == [1, 1, 2]
        assert (made.outbox(0).published, made.outbox(1).published) == (1, 2)
