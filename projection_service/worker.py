"""The projection worker: what it reads, what runs, and how a partition comes and goes."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Final

from projection_service.log_identity.set_backs import SetBacks
from projection_service.probe import probe
from projection_service.projector import Projector
from projection_service.query_responder import QueryResponder
from projection_service.read_model import ReadModel
from projection_service.settings import ProjectionSettings
from shared.errors import NoAnswer, QueryRefused
from shared.event_log.log_client import LogClient
from shared.messages import names
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.dead_letter import DeadLetters
from shared.rabbitmq.deployment_mark import check_log_mark
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


LEARN_EVERY_S: Final = 1.0


class ProjectionWorker:
    """The work of one session."""

    def __init__(
        self, projector: Projector, answers: Sequence[QueryResponder], dead_letters: DeadLetters,
        consumer: Consumer, queries: Mapping[str, Consumer], set_backs: SetBacks,
        log_client: LogClient, read_model: ReadModel,
    ) -> None:  # fmt: skip
        self._dead_letters = dead_letters
        self._projector = projector
        self._answers = answers
        self._consumer = consumer
        self._queries = queries
        self._set_backs = set_backs
        self._log_client = log_client
        self._read_model = read_model

    @classmethod
    async def open(cls, opened: Opened, partitions: int) -> "ProjectionWorker":
        """Open channels, and read the queries."""
        broker, read_model = opened.broker, ReadModel(opened.pool)
        log_id = await read_model.followed_log()
        if log_id is not None:
            await check_log_mark(broker, log_id)
        log_client = LogClient(await Requests.open(broker), log_id)
        set_backs = SetBacks(read_model, opened.readiness, partitions)
        await set_backs.look()
        consumer = Consumer(broker, prefetch=PREFETCH, largest=LARGEST_EVENT)
        checks = Consumer(broker, prefetch=CHECK_PREFETCH, largest=LARGEST_CHECKS)
        others = Consumer(broker, prefetch=QUERY_PREFETCH)
        answers = [
            QueryResponder(checks, opened.replies, opened.pool, CHECK_PREFETCH // 2, set_backs),
            QueryResponder(others, opened.replies, opened.pool, QUERY_PREFETCH // 2, set_backs),
        ]
        dead_letters = DeadLetters(await Outlet.open(broker), consumer, opened.readiness)

        def progressed(versions: Mapping[str, int]) -> None:
            for responder in answers:
                responder.progressed(versions)

        projector = Projector(
            consumer,
            read_model,
            log_client,
            dead_letters,
            on_progress=progressed,
            set_backs=set_backs,
        )
        queries = {names.CHECKS: checks, names.QUERIES: others}
        for kind, reading in (("events", consumer), ("checks", checks), ("queries", others)):
            OLDEST_IN_HAND.labels(kind).set_function(reading.oldest_s)
        for queue, reading in queries.items():
            await reading.open(queue, ordered=False)
        return cls(
            projector, answers, dead_letters, consumer, queries, set_backs, log_client, read_model
        )

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""
        return (
            self._consumer.keep_acknowledging(),
            *(queries.keep_acknowledging() for queries in self._queries.values()),
            self._projector.run(),
            self._projector.keep_up(),
            self._dead_letters.run(),
            *(loop for answers in self._answers for loop in answers.loops()),
            self._set_backs.run(),
            self._learn_log(),
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
        for queue, queries in self._queries.items():
            queries.stop(queue)
        for queue, queries in self._queries.items():
            await queries.drained(queue)
            await queries.close(queue)


def service(settings: ProjectionSettings) -> Service:
    """Describe this service to the session that runs it."""

    async def make_worker(opened: Opened) -> ProjectionWorker:
        return await ProjectionWorker.open(opened, settings.consent_partitions)

    return Service(
        package="projection_service",
        database_url=settings.read_model_url,
        make_worker=make_worker,
        probe=probe(settings.consent_partitions),
        database_settings=COMMITS_UNAWAITED,
    )
