"""Reads the queries and answers them: a part of every worker, and all that some workers do."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Final

from projection_service.answers.responder import QueryResponder
from projection_service.log_identity.set_backs import SetBacks
from projection_service.projections.changes import Held
from projection_service.read_model import ReadModel
from shared.messages import names
from shared.postgres.kept_connection import KeptConnection
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.deployment_mark import check_log_mark, is_bound
from shared.telemetry.metrics import OLDEST_IN_HAND
from shared.values.oversized import LARGEST_CHECKS
from shared.values.vocabulary import Grantee
from shared.worker.session import Opened

QUERY_PREFETCH: Final = 500
CHECK_PREFETCH: Final = 300
"""Fewer, since a CheckConsents may be larger than all else."""


class AnswerWorker:
    """Answers what is asked; checks have a queue of their own, that no history waits in."""

    def __init__(
        self,
        queries: Mapping[str, Consumer],
        responders: Sequence[QueryResponder],
        set_backs: SetBacks,
    ) -> None:
        self._queries = queries
        self._responders = responders
        self.set_backs = set_backs

    @classmethod
    async def open(cls, opened: Opened, partitions: int) -> "AnswerWorker":
        """Look whether this read model's log is the broker's; nothing is read before `read`."""
        read_model = ReadModel(opened.pool)
        log_id = await read_model.followed_log()
        if log_id is not None and await is_bound(opened.broker):
            await check_log_mark(opened.broker, log_id)
        set_backs = SetBacks(read_model, opened.readiness, partitions)
        await set_backs.look()
        checks = Consumer(opened.broker, prefetch=CHECK_PREFETCH, largest=LARGEST_CHECKS)
        others = Consumer(opened.broker, prefetch=QUERY_PREFETCH)
        responders = [
            QueryResponder(
                reading,
                opened.replies,
                opened.pool,
                prefetch // 2,
                set_backs,
                KeptConnection(opened.pool),
            )
            for reading, prefetch in ((checks, CHECK_PREFETCH), (others, QUERY_PREFETCH))
        ]
        for kind, reading in (("checks", checks), ("queries", others)):
            OLDEST_IN_HAND.labels(kind).set_function(reading.oldest_s)
        return cls({names.CHECKS: checks, names.QUERIES: others}, responders, set_backs)

    async def read(self) -> None:
        """Begin to read the queues."""
        for queue, reading in self._queries.items():
            await reading.open(queue, ordered=False)

    def listen(
        self,
        projected: Callable[[str], int | None],
        recall: Callable[[str, Grantee], Held | None],
    ) -> None:
        """Learn how far this worker itself has projected a patient, and what that came to."""
        for responder in self._responders:
            responder.projected = projected
            responder.recall = recall

    def progressed(self, versions: Mapping[str, int]) -> bool:
        """Tell whoever waits for one of these versions, just projected here; say if one does."""
        waits = [responder.progressed(versions) for responder in self._responders]
        return any(waits)

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""
        return (
            *(queries.keep_acknowledging() for queries in self._queries.values()),
            *(loop for responder in self._responders for loop in responder.loops()),
            self.set_backs.run(),
        )

    async def close(self) -> None:
        """Finish the queries in hand."""
        for queue, queries in self._queries.items():
            queries.stop(queue)
        for queue, queries in self._queries.items():
            await queries.drained(queue)
            await queries.close(queue)
