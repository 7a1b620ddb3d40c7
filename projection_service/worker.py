"""The projection worker: what it reads, what runs, and how a partition comes and goes."""

from collections.abc import Coroutine, Mapping, Sequence
from typing import Final

from projection_service.probe import probe
from projection_service.projector import Projector
from projection_service.query_responder import QueryResponder
from projection_service.read_model import ReadModel
from projection_service.settings import ProjectionSettings
from shared.event_log.log_client import LogClient
from shared.messages import names
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.dead_letter import DeadLetters
from shared.rabbitmq.publishing import Outlet
from shared.rabbitmq.rpc_client import Requests
from shared.telemetry.metrics import OLDEST_IN_HAND
from shared.values.oversized import LARGEST_CHECKS, LARGEST_EVENT
from shared.values.partition import Lease
from shared.worker.session import Opened, Service

PREFETCH: Final = 500
"""Unsettled events per partition."""
QUERY_PREFETCH: Final = 500
CHECK_PREFETCH: Final = 300
"""Fewer, since a CheckConsents may be larger than all else."""
COMMITS_UNAWAITED: Final = {"synchronous_commit": "off"}
"""Nothing here need outlive a crash of its server: the checkpoint moves in the transaction that
changes what it covers, so what is forgotten is forgotten together, and read from the log again."""


class ProjectionWorker:
    """The work of one session."""

    def __init__(
        self, projector: Projector, answers: Sequence[QueryResponder], dead_letters: DeadLetters,
        consumer: Consumer, queries: Mapping[str, Consumer],
    ) -> None:  # fmt: skip
        self._dead_letters = dead_letters
        self._projector = projector
        self._answers = answers
        self._consumer = consumer
        self._queries = queries

    @classmethod
    async def open(cls, opened: Opened) -> "ProjectionWorker":
        """Open channels, and read the queries."""
        broker = opened.broker
        consumer = Consumer(broker, prefetch=PREFETCH, largest=LARGEST_EVENT)
        checks = Consumer(broker, prefetch=CHECK_PREFETCH, largest=LARGEST_CHECKS)
        others = Consumer(broker, prefetch=QUERY_PREFETCH)
        answers = [
            QueryResponder(checks, opened.replies, opened.pool, CHECK_PREFETCH // 2),
            QueryResponder(others, opened.replies, opened.pool, QUERY_PREFETCH // 2),
        ]
        dead_letters = DeadLetters(await Outlet.open(broker), consumer, opened.readiness)

        def progressed(versions: Mapping[str, int]) -> None:
            for responder in answers:
                responder.progressed(versions)

        projector = Projector(
            consumer,
            ReadModel(opened.pool),
            LogClient(await Requests.open(broker)),
            dead_letters,
            on_progress=progressed,
        )
        queries = {names.CHECKS: checks, names.QUERIES: others}
        for kind, reading in (("events", consumer), ("checks", checks), ("queries", others)):
            OLDEST_IN_HAND.labels(kind).set_function(reading.oldest_s)
        for queue, reading in queries.items():
            await reading.open(queue, ordered=False)
        return cls(projector, answers, dead_letters, consumer, queries)

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""
        return (
            self._consumer.keep_acknowledging(),
            *(queries.keep_acknowledging() for queries in self._queries.values()),
            self._projector.run(),
            self._projector.keep_up(),
            self._dead_letters.run(),
            *(loop for answers in self._answers for loop in answers.loops()),
        )

    async def take(self, lease: Lease) -> None:
        """Go on where the last owner stopped."""
        await self._projector.open(lease)
        await self._consumer.open(names.projection_queue(lease.partition), lease)

    async def drain(self, lease: Lease) -> None:
        """Finish the events in hand; what waits for a gap to be filled goes back."""
        queue = names.projection_queue(lease.partition)
        self._consumer.stop(queue)
        self._projector.let_go(lease.partition)
        await self._consumer.drained(queue)
        await self._projector.close(lease.partition)
        await self._consumer.close(queue)

    async def close(self) -> None:
        """Finish the queries in hand."""
        for queue, queries in self._queries.items():
            queries.stop(queue)
        for queue, queries in self._queries.items():
            await queries.drained(queue)
            await queries.close(queue)


def service(settings: ProjectionSettings) -> Service:
    """Describe this service to the session that runs it."""
    return Service(
        package="projection_service",
        database_url=settings.read_model_url,
        make_worker=ProjectionWorker.open,
        probe=probe(settings.consent_partitions),
        database_settings=COMMITS_UNAWAITED,
    )
