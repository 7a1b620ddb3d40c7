"""The projection worker: what it reads, what runs, and how a partition comes and goes."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Final

from projection_service.answer_worker import AnswerWorker
from projection_service.probe import probe
from projection_service.projector import Projector
from projection_service.read_model import ReadModel
from projection_service.settings import ProjectionSettings
from shared.errors import NoAnswer, QueryRefused
from shared.event_log.log_client import LogClient
from shared.messages import names
from shared.postgres.kept_connection import KeptConnection
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.dead_letter import DeadLetters
from shared.rabbitmq.publishing import Outlet
from shared.rabbitmq.rpc_client import Requests
from shared.telemetry.batch_lines import keep_telling
from shared.telemetry.metrics import OLDEST_IN_HAND
from shared.values.oversized import LARGEST_EVENT
from shared.values.partition import Lease
from shared.worker.session import Opened, Service

PREFETCH: Final = 500
"""Unsettled events per partition."""
COMMITS_UNAWAITED: Final = {"synchronous_commit": "off"}
"""Nothing here need outlive a crash of its server: the checkpoint moves in the transaction that
changes what it covers, so what is forgotten is forgotten together, and read from the log again."""


LEARN_EVERY_S: Final = 1.0


class ProjectionWorker:
    """The work of one session."""

    def __init__(
        self, projector: Projector, answers: AnswerWorker, dead_letters: DeadLetters,
        consumer: Consumer, log_client: LogClient, read_model: ReadModel,
    ) -> None:  # fmt: skip
        self._dead_letters = dead_letters
        self._projector = projector
        self._answers = answers
        self._consumer = consumer
        self._log_client = log_client
        self._read_model = read_model

    @classmethod
    async def open(cls, opened: Opened, partitions: int) -> "ProjectionWorker":
        """Open channels, and read the queries."""
        broker, read_model = opened.broker, ReadModel(opened.pool, KeptConnection(opened.pool))
        answers = await AnswerWorker.open(opened, partitions)
        log_id = await read_model.followed_log()
        log_client = LogClient(await Requests.open(broker), log_id)
        consumer = Consumer(broker, prefetch=PREFETCH, largest=LARGEST_EVENT)
        dead_letters = DeadLetters(await Outlet.open(broker), consumer, opened.readiness)
        projector = Projector(
            consumer,
            read_model,
            log_client,
            dead_letters,
            on_progress=answers.progressed,
            set_backs=answers.set_backs,
            readiness=opened.readiness,
        )
        answers.listen(projector.projected, projector.recall)
        OLDEST_IN_HAND.labels("events").set_function(consumer.oldest_s)
        await answers.read()
        return cls(projector, answers, dead_letters, consumer, log_client, read_model)

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""
        return (
            self._consumer.keep_acknowledging(),
            self._projector.run(),
            self._projector.keep_up(),
            self._dead_letters.run(),
            *self._answers.loops(),
            self._learn_log(),
            keep_telling(self._projector.lines),
        )

    async def _learn_log(self) -> None:
        """Remember which log is followed, once it has said that."""
        while self._log_client.log_id is None:
            with suppress(NoAnswer, QueryRefused):
                page = await self._log_client.read(0, 0, 1)
                if page.log is not None:
                    await self._read_model.follow_log(page.log)
                    return
            await asyncio.sleep(LEARN_EVERY_S)

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

    async def make_worker(opened: Opened) -> ProjectionWorker:
        return await ProjectionWorker.open(opened, settings.consent_partitions)

    async def make_answerer(opened: Opened) -> AnswerWorker:
        return await AnswerWorker.open(opened, settings.consent_partitions)

    return Service(
        package="projection_service",
        database_url=settings.read_model_url,
        make_worker=make_worker,
        make_answerer=make_answerer,
        probe=probe(settings.consent_partitions),
        database_settings=COMMITS_UNAWAITED,
    )
