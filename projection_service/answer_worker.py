"""Reads the queries and answers them: a part of every worker, and all that some workers do."""

from collections.abc import Coroutine, Mapping, Sequence
from typing import Final

from projection_service.query_responder import QueryResponder
from shared.messages import names
from shared.postgres.connection import Queryable
from shared.rabbitmq.connection import Broker
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.telemetry.metrics import OLDEST_IN_HAND
from shared.values.oversized import LARGEST_CHECKS

QUERY_PREFETCH: Final = 500
CHECK_PREFETCH: Final = 300
"""Fewer, since a CheckConsents may be larger than all else."""


class AnswerWorker:
    """Answers what is asked; checks have a queue of their own, that no history waits in."""

    def __init__(
        self, queries: Mapping[str, Consumer], responders: Sequence[QueryResponder]
    ) -> None:
        self._queries = queries
        self._responders = responders

    @classmethod
    def on(cls, broker: Broker, replies: ReplyPublisher, database: Queryable) -> "AnswerWorker":
        """Answer from a database; nothing is read before `read`."""
        checks = Consumer(broker, prefetch=CHECK_PREFETCH, largest=LARGEST_CHECKS)
        others = Consumer(broker, prefetch=QUERY_PREFETCH)
        responders = [
            QueryResponder(checks, replies, database, CHECK_PREFETCH // 2),
            QueryResponder(others, replies, database, QUERY_PREFETCH // 2),
        ]
        for kind, reading in (("checks", checks), ("queries", others)):
            OLDEST_IN_HAND.labels(kind).set_function(reading.oldest_s)
        return cls({names.CHECKS: checks, names.QUERIES: others}, responders)

    async def read(self) -> None:
        """Begin to read the queues."""
        for queue, reading in self._queries.items():
            await reading.open(queue, ordered=False)

    def progressed(self, versions: Mapping[str, int]) -> None:
        """Tell whoever waits for one of these versions, just projected here."""
        for responder in self._responders:
            responder.progressed(versions)

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""
        return (
            *(queries.keep_acknowledging() for queries in self._queries.values()),
            *(loop for responder in self._responders for loop in responder.loops()),
        )

    async def close(self) -> None:
        """Finish the queries in hand."""
        for queue, queries in self._queries.items():
            queries.stop(queue)
        for queue, queries in self._queries.items():
            await queries.drained(queue)
            await queries.close(queue)
