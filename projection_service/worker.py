"""The projection worker: what it reads, what runs, and how a partition comes and goes."""

from collections.abc import Coroutine, Sequence
from typing import Final

from projection_service.answer_worker import AnswerWorker
from projection_service.probe import probe
from projection_service.projector import Projector
from projection_service.read_model import ReadModel
from projection_service.settings import ProjectionSettings
from shared.event_log.log_client import LogClient
from shared.messages import names
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.dead_letter import DeadLetters
from shared.rabbitmq.publishing import Outlet
from shared.rabbitmq.rpc_client import Requests
from shared.telemetry.metrics import OLDEST_IN_HAND
from shared.values.oversized import LARGEST_EVENT
from shared.values.partition import Lease
from shared.worker.session import Opened, Service

PREFETCH: Final = 500
"""Unsettled events per partition."""
COMMITS_UNAWAITED: Final = {"synchronous_commit": "off"}
"""Nothing here need outlive a crash of its server: the checkpoint moves in the transaction that
changes what it covers, so what is forgotten is forgotten together, and read from the log again."""


class ProjectionWorker:
    """The work of one session."""

    def __init__(
        self,
        projector: Projector,
        answers: AnswerWorker,
        dead_letters: DeadLetters,
        consumer: Consumer,
    ) -> None:
        self._dead_letters = dead_letters
        self._projector = projector
        self._answers = answers
        self._consumer = consumer

    @classmethod
    async def open(cls, opened: Opened) -> "ProjectionWorker":
        """Open channels, and read the queries."""
        broker = opened.broker
        consumer = Consumer(broker, prefetch=PREFETCH, largest=LARGEST_EVENT)
        answers = AnswerWorker.on(broker, opened.replies, opened.pool)
        dead_letters = DeadLetters(await Outlet.open(broker), consumer, opened.readiness)
        projector = Projector(
            consumer,
            ReadModel(opened.pool),
            LogClient(await Requests.open(broker)),
            dead_letters,
            on_progress=answers.progressed,
        )
        OLDEST_IN_HAND.labels("events").set_function(consumer.oldest_s)
        await answers.read()
        return cls(projector, answers, dead_letters, consumer)

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""
        return (
            self._consumer.keep_acknowledging(),
            self._projector.run(),
            self._projector.keep_up(),
            self._dead_letters.run(),
            *self._answers.loops(),
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
        await self._answers.close()


def service(settings: ProjectionSettings) -> Service:
    """Describe this service to the session that runs it."""
    return Service(
        package="projection_service",
        database_url=settings.read_model_url,
        make_worker=ProjectionWorker.open,
        make_answerer=lambda opened: AnswerWorker.on(opened.broker, opened.replies, opened.pool),
        probe=probe(settings.consent_partitions),
        database_settings=COMMITS_UNAWAITED,
    )
