"""Follows the log for a mirror: writes down what is new, and when nothing more was to be known."""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from shared.client.mirror.heads import Heads
from shared.client.mirror.moments import now
from shared.client.mirror.writer import Writer, read
from shared.errors import LogSetBack, NoAnswer, QueryRefused, SettingsError
from shared.errors.text import reason_of
from shared.event_log.log_client import (
    PAGE,
    READ_WITHIN_S,
    LogClient,
    Page,
    query_request,
    read_answer,
)
from shared.event_log.set_back import SetBack
from shared.messages.cloud_event import CloudEvent
from shared.messages.events import ConsentEvent
from shared.messages.queries import ReadEvents
from shared.messages.replies import Detail
from shared.rabbitmq.connection import ids_of
from shared.rabbitmq.consumer import Delivery
from shared.rabbitmq.rpc_client import Requests
from shared.values.partition import partition_of

REMEDY: Final = (
    "where it is the right log, delete the mirror's file, and it is made anew, once the log's "
    "operator has decided"
)
UNDECIDED: Final = "was set back, and its operator has not decided yet"

log = structlog.get_logger()


class Following:
    """What a Follower hands events to, over one connection, and what looks for the logs' ends.

    Silence says nothing: an event may be lost, or on its way. So each log is asked for its end.
    Once the file has all up to there, it is complete as of the moment of asking.
    """

    def __init__(self, requests: Requests, writer: Writer, partitions: int) -> None:
        self._requests = requests
        self.log_client = LogClient(requests)
        self._writer = writer
        self._partitions = partitions
        self._heads = Heads()
        self._said: str | None = None

    async def begin(self) -> None:
        """Look whether it is the log that the file was made from, and read what can be read now.

        Raises SettingsError where the deployment has more or fewer partitions.
        """
        try:
            trouble = await self._look_at_all()
        except QueryRefused:
            raise self._wrong_partitions() from None
        await self._expect_no_more_partitions()
        for patient_id in self._writer.unreadable:
            await self._read_again(patient_id)
        self._writer.note_trouble(trouble)
        self._said = trouble

    async def keep_looking(self, every_s: float) -> None:
        """Look for the ends of all logs again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                trouble = await self._look_at_all()
            except NoAnswer as error:
                trouble = reason_of(error)
            self._say(trouble)

    async def apply(self, events: Sequence[CloudEvent]) -> None:
        """Write down what happened."""
        last = {event.partition: event.position for event in events}
        self._writer.apply(events, self._heads.take_reached(last))

    async def set_aside(self, delivery: Delivery, details: Sequence[Detail]) -> None:
        """Drop what is no event of the log; the log has all that are."""
        log.error(
            "delivery.dropped",
            queue=delivery.source.queue,
            reason=details[0].field,
            **ids_of(delivery.message),
        )

    async def on_compared(self, partition: int, found: SetBack | None) -> None:
        """Raise LogSetBack where the log does not have what was taken: nothing is said any more."""
        if found is not None:
            raise LogSetBack(f"{found}; {REMEDY}")

    def on_batch(
        self, deliveries: int, events: int, partitions: Sequence[int], seconds: float
    ) -> None:
        """Nothing is measured here."""

    def on_log_page(self, events: int) -> None:
        """Nothing is measured here."""

    async def _look_at_all(self) -> str | None:
        """Look for the end of each log; return why some can't be believed, where that is so."""
        disputed = [str(number) for number in range(self._partitions) if await self._look(number)]
        positions = {number: one.position for number, one in enumerate(self._writer.reached)}
        self._writer.note_complete(self._heads.take_reached(positions))
        numbers = ", ".join(disputed)
        return f"the log of partition {numbers} {UNDECIDED}" if disputed else None

    async def _look(self, partition: int) -> bool:
        """Ask where a log ends, and for the event that was taken from it last.

        Return whether it is disputed: then it lacks what was published of it, a revoke maybe, and
        who has all that it has can't say yes by that.
        """
        taken, asked_at = self._writer.reached[partition], now()
        page = await self.log_client.read(partition, max(0, taken.position - 1), limit=1)
        await self.on_compared(partition, page.differs(partition, taken))
        if not page.disputed:
            self._heads.note(partition, page.head, asked_at)
        return page.disputed

    async def _expect_no_more_partitions(self) -> None:
        try:
            await self.log_client.read(self._partitions, 0, limit=1)
        except QueryRefused:
            return
        raise self._wrong_partitions()

    def _wrong_partitions(self) -> SettingsError:
        return SettingsError(
            f"the deployment has not {self._partitions} partitions: give the right number"
        )

    async def _read_again(self, patient_id: str) -> None:
        """Make a patient's consents anew, if this version can read all that happened to it."""
        partition = partition_of(patient_id, self._partitions)
        until = self._writer.reached[partition].position
        facts: list[ConsentEvent] = []
        position = 0
        while events := (await self._page_of(patient_id, partition, position)).events:
            for event in events:
                fact = read(event)
                if event.position <= until and fact is None:
                    return
                if event.position <= until and fact is not None:
                    facts.append(fact)
            position = events[-1].position
        self._writer.replace_patient(patient_id, partition, facts)

    async def _page_of(self, patient_id: str, partition: int, after_position: int) -> Page:
        query = ReadEvents(
            partition=partition, after_position=after_position, patient_id=patient_id
        )
        reply = await self._requests.ask(query_request(query, ReadEvents.type), READ_WITHIN_S)
        return read_answer(reply.body, PAGE)

    def _say(self, trouble: str | None) -> None:
        """Note what is in the way, when it changes."""
        if trouble != self._said:
            self._writer.note_trouble(trouble)
        self._said = trouble
