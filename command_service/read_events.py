"""Answers ReadEvents: what follows this position in the log?"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from command_service.store.event_store import EventStore, Head
from command_service.store.recorded_event import RecordedEvent
from shared.messages.queries import EventPage, QueryFailed, ReadEvents
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.rabbitmq.query_server import answer, invalid, kind, read_query
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.telemetry.metrics import QUERIES
from shared.values.partition import partition_of

MOST_BYTES: Final = 1 << 20
"""How large a page grows at most, unless a single event is larger."""
_KINDS: Final = {ReadEvents.type: kind(ReadEvents)}


class LogReader:
    """Reads the log for whoever asks; any worker can, whatever it owns."""

    def __init__(
        self,
        consumer: Consumer,
        answers: ReplyPublisher,
        store: EventStore,
        partitions: int,
        is_disputed: Callable[[int], bool],
    ) -> None:
        """`is_disputed` says whether a partition's log lacks what was published of it."""
        self._is_disputed = is_disputed
        self._consumer = consumer
        self._answers = answers
        self._store = store
        self._partitions = partitions

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            for delivery in await self._consumer.take(most=1):
                await self._answer(delivery)

    async def _answer(self, delivery: Delivery) -> None:
        query = read_query(delivery.message, _KINDS)
        found = query if isinstance(query, QueryFailed) else await self._page(query)
        body = found.to_json() if isinstance(found, QueryFailed) else found
        await answer(self._answers, [(delivery.message, body)])
        await self._consumer.settle_one(delivery)
        status = found.error if isinstance(found, QueryFailed) else "ok"
        QUERIES.labels(ReadEvents.type, status).inc()

    async def _page(self, query: ReadEvents) -> bytes | QueryFailed:
        if query.partition >= self._partitions:
            return invalid("partition", f"must be below {self._partitions}")
        patient_id = query.patient_id
        if patient_id and (own := partition_of(patient_id, self._partitions)) != query.partition:
            return invalid("patient_id", f"is in partition {own}")
        events = await self._store.read_log(
            query.partition, query.after_position, query.limit, patient_id
        )
        head = await self._store.read_head(query.partition)  # after the events: never below them
        disputed = self._is_disputed(query.partition)
        return _encode(_within(MOST_BYTES, events), head, disputed=disputed)


def _within(most_bytes: int, events: Iterable[RecordedEvent]) -> Iterator[bytes]:
    size = 0
    for event in events:
        body = event.to_json()
        size += len(body)
        if size > most_bytes and size > len(body):
            return
        yield body


def _encode(events: Iterable[bytes], head: Head, *, disputed: bool) -> bytes:
    answer = EventPage(
        events=[],
        head=head.position,
        log=head.log_id,
        generations=list(head.generations) or None,
        disputed=True if disputed else None,
    )
    return answer.to_json().replace(b'"events":[]', b'"events":[%b]' % b",".join(events), 1)
