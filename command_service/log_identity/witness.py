"""Remembers on the broker how far each log goes: a log that was set back can't.

A queue for each partition keeps one message, the place of the last event that its owner knew of
when it last wrote. Who takes a partition compares it with the log, and again now and then: a log
that lacks that event was restored to an older state, or is an old primary's that others have left.
"""

import asyncio
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import asyncpg
from pydantic import BaseModel, ValidationError

from command_service.store.event_store import EventStore, Head
from shared.errors import ServerLeft, TopologyMissing
from shared.errors.connection import ConnectionLost
from shared.event_log.set_back import (
    FIRST_GENERATION,
    LogPlace,
    SetBack,
    compare,
    newest_generation,
)
from shared.messages import names
from shared.rabbitmq.connection import AmqpMessage, Broker, EntityNotFound, Properties
from shared.rabbitmq.publishing import PERSISTENT, Outgoing, Outlet
from shared.values.partition import Lease

LOOKS: Final = 3
"""Another worker may have the message in hand for a moment."""
LOOK_AGAIN_S: Final = 0.02
READ_WITHIN_S: Final = 5.0
READ_OFTEN: Final = 10_000
"""So often a message is read before it is written anew, far below what its queue allows."""
WRITTEN_WITHIN_S: Final = 5.0


LEFT: Final = (
    "the event store's server was left: another one has taken over from it, or its log was given "
    "up: lead EVENT_STORE_URL to the right one; or take this as it is: "
    "`python -m command_service accept-log`"
)


class Testimony(BaseModel):
    """What the queue of a partition says of its log."""

    log: UUID
    position: int
    event_id: str
    generation: int | None = None
    """Of the whole log then, not of that event."""
    server: str | None = None
    timeline: int | None = None


class Witness:
    """Writes and reads where the logs were last known to be."""

    def __init__(self, broker: Broker, outlet: Outlet, store: EventStore) -> None:
        self._broker = broker
        self._outlet = outlet
        self._store = store
        self._server: tuple[str | None, int | None] | None = None

    @classmethod
    async def open(cls, broker: Broker, store: EventStore) -> "Witness":
        """Open a channel of its own."""
        return cls(broker, await Outlet.open(broker), store)

    async def write(self, places: Mapping[int, LogPlace], log_id: UUID) -> bool:
        """Remember the last events of some partitions, in place of those before; whether it is."""
        if self._server is None:  # kept, since a session's last words come without a database
            self._server = await self._read_server()
        server, timeline = self._server
        messages = [
            _message(
                number,
                Testimony(
                    log=log_id,
                    position=place.position,
                    event_id=place.event_id or "",
                    generation=place.generation,
                    server=server,
                    timeline=timeline,
                ),
            )
            for number, place in places.items()
        ]
        return not await self._outlet.publish(messages, within=WRITTEN_WITHIN_S)

    async def begin(self, lease: Lease) -> None:
        """Remember where a partition stands that was taken: another server is told by that."""
        head = await self._store.read_head(lease.partition)
        event_id = await self._event_id(lease.partition, head.position)
        if head.log_id is not None and event_id is not None:
            place = LogPlace(head.position, event_id, head.generation or FIRST_GENERATION)
            await self.write({lease.partition: place}, head.log_id)

    async def forget(self, partition: int) -> None:
        """Remember nothing of a partition any more."""
        channel = await self._broker.channel()
        while (found := await channel.basic_get(names.witness_queue(partition))).delivery_tag:
            await channel.basic_ack(found.delivery_tag)
        await self._broker.close_channel(channel)

    async def compare(self, partition: int, *, any_server: bool = False) -> SetBack | None:
        """Compare a partition's log with what was remembered; None where it has that.

        Raises ServerLeft on a server that another has taken over from, unless that is no matter.
        """
        told = await self._read(partition)
        head = await self._store.read_head(partition)
        if told is None or told.log != head.log_id:
            return None
        event_id = await self._event_id(partition, told.position)
        taken = LogPlace(told.position, told.event_id, told.generation)
        found = compare(partition, taken, head.position, head.generations, event_id)
        if not any_server and await self._is_left(told, head):
            raise ServerLeft(LEFT)
        return found

    async def _event_id(self, partition: int, position: int) -> str | None:
        events = await self._store.read_log(partition, max(0, position - 1), 1)
        there = events[0] if events and events[0].position == position else None
        return str(there.event_id) if there else None

    async def _is_left(self, told: Testimony, head: Head) -> bool:
        """Whether this is a server that another has taken over from, or a log that was given up."""
        if (told.generation or FIRST_GENERATION) > newest_generation(head.generations):
            return True
        server, timeline = self._server = await self._read_server()
        if server is None or timeline is None or told.timeline is None:
            return False
        return told.server == server and told.timeline > timeline

    async def _read_server(self) -> tuple[str | None, int | None]:
        """Read which server this is; one that does not say so is not compared."""
        try:
            return await self._store.read_server()
        except asyncpg.InsufficientPrivilegeError:
            return None, None

    async def _read(self, partition: int) -> Testimony | None:
        queue = names.witness_queue(partition)
        for _ in range(LOOKS):
            channel = await self._broker.channel(expendable=True)
            try:
                async with asyncio.timeout(READ_WITHIN_S):
                    found = await channel.basic_get(queue)
            except EntityNotFound:
                raise TopologyMissing(queue) from None
            except TimeoutError:
                lost = f"the queue {queue} does not answer: has it a leader?"
                raise ConnectionLost(lost) from None
            if found.delivery_tag:  # it goes back before the next look, whoever takes that
                await channel.basic_nack(found.delivery_tag, requeue=True)
            await channel.close()
            if found.delivery_tag:
                return await self._renewed(queue, found)
            await asyncio.sleep(LOOK_AGAIN_S)
        return None

    async def _renewed(self, queue: str, found: AmqpMessage) -> Testimony | None:
        """Read what was remembered; what was read very often is written anew."""
        read = (found.header.properties.headers or {}).get("x-delivery-count")
        if isinstance(read, int) and read > READ_OFTEN:
            properties = Properties(delivery_mode=PERSISTENT, message_id=queue)
            message = Outgoing("", queue, found.body, properties)
            await self._outlet.publish([message], within=WRITTEN_WITHIN_S)
        return _told(found.body)


def _told(body: bytes) -> Testimony | None:
    try:
        return Testimony.model_validate_json(body)
    except ValidationError:
        return None


def _message(partition: int, told: Testimony) -> Outgoing:
    properties = Properties(
        content_type="application/json",
        delivery_mode=PERSISTENT,
        message_id=f"{partition}/{told.position}",
    )
    return Outgoing("", names.witness_queue(partition), told.model_dump_json().encode(), properties)
