"""The command worker: what it reads, what runs, and how a partition comes and goes."""

from collections.abc import Coroutine, Sequence
from typing import Final

from command_service.expiry import Expiry
from command_service.log_identity.deployment import check_deployment
from command_service.log_identity.disputed_logs import DisputedLogs
from command_service.log_identity.witness import Witness
from command_service.metrics import OLDEST_DUE_END
from command_service.path.command_path import CommandPath
from command_service.path.poison_messages import PoisonMessages
from command_service.path.rehearsal import Rehearsal
from command_service.path.settle import Settler
from command_service.probe import probe
from command_service.publisher import Publisher
from command_service.read_events import LogReader
from command_service.settings import CommandSettings
from command_service.store.ends import Ends
from command_service.store.event_store import EventStore
from command_service.store.snapshot_writer import SnapshotWriter
from shared.messages import names
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.dead_letter import DeadLetters
from shared.rabbitmq.deployment_mark import is_bound
from shared.rabbitmq.publishing import Outlet
from shared.telemetry.batch_lines import keep_telling
from shared.telemetry.metrics import OLDEST_IN_HAND
from shared.values.partition import Lease
from shared.worker.session import Opened, Service

PREFETCH: Final = 250
"""Unsettled commands per partition: enough for a batch in hand and the next one under way."""
LOG_PREFETCH: Final = 20


class CommandWorker:
    """The work of one session."""

    def __init__(
        self, path: CommandPath, publisher: Publisher,
        snapshots: SnapshotWriter, rehearsal: Rehearsal, expiry: Expiry,
        dead_letters: DeadLetters, consumer: Consumer, queries: Consumer, witness: Witness,
        store: EventStore, opened: Opened, settings: CommandSettings,
    ) -> None:  # fmt: skip
        self._path = path
        self._dead_letters = dead_letters
        self._publisher = publisher
        self._snapshots = snapshots
        self._rehearsal = rehearsal
        self._expiry = expiry
        self._consumer = consumer
        self._queries = queries
        go_on = settings.commands_when_set_back == "go_on"
        partitions = settings.consent_partitions
        self._disputed = DisputedLogs(
            witness, store, opened.readiness, self._begin, partitions=partitions, go_on=go_on
        )
        self._log_reader = LogReader(
            queries, opened.replies, store, partitions, self._disputed.is_disputed
        )

    @classmethod
    async def open(cls, opened: Opened, settings: CommandSettings) -> "CommandWorker":
        """Open channels, and read the queues that belong to no partition."""
        broker, store = opened.broker, EventStore(opened.pool)
        if await is_bound(broker):
            await check_deployment(opened.pool, broker)
        witness = await Witness.open(broker, store)
        consumer = Consumer(broker, prefetch=PREFETCH)
        queries = Consumer(broker, prefetch=LOG_PREFETCH)
        OLDEST_IN_HAND.labels("commands").set_function(consumer.oldest_s)
        OLDEST_IN_HAND.labels("queries").set_function(queries.oldest_s)
        events, straight, aside = [await Outlet.open(broker) for _ in range(3)]
        publisher = Publisher(events, straight, store, opened.may_write, opened.readiness, witness)
        dead_letters = DeadLetters(aside, consumer, opened.readiness)
        settler = Settler(consumer, opened.replies, dead_letters)
        rehearsal = Rehearsal(store, settings.consent_partitions)
        poison_messages = PoisonMessages(opened.pool, rehearsal)
        snapshots = SnapshotWriter(store)
        path = CommandPath(
            consumer,
            store,
            settler,
            publisher,
            poison_messages,
            snapshots,
            settings.consent_partitions,
            settings.consent_longest_grant,
        )
        expiry = Expiry(Ends(opened.pool), store, path, publisher)
        OLDEST_DUE_END.set_function(expiry.oldest_s)
        worker = cls(
            path, publisher, snapshots, rehearsal, expiry,
            dead_letters, consumer, queries, witness, store, opened, settings,
        )  # fmt: skip
        await worker._disputed.look()
        await consumer.open(names.UNROUTABLE)
        await queries.open(names.LOG)
        return worker

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""
        return (
            self._consumer.keep_acknowledging(),
            self._path.run(),
            self._expiry.run(),
            self._publisher.run(),
            self._publisher.keep_marking(),
            self._publisher.keep_repaying(),
            self._dead_letters.run(),
            self._log_reader.run(),
            self._snapshots.run(),
            self._disputed.run(),
            keep_telling(self._path.lines, self._publisher.lines),
        )

    async def take(self, lease: Lease) -> None:
        """Begin with a partition, unless its log was set back."""
        await self._disputed.take(lease)

    async def _begin(self, lease: Lease) -> None:
        """Publish what the last owner left, and read the partition's commands.

        A command is rehearsed first: where none can be decided, none is taken off its queue.
        """
        await self._rehearsal.hold(lease)
        self._path.streams.forget(lease.partition)
        await self._publisher.open(lease)
        self._expiry.open(lease)
        await self._consumer.open(names.command_queue(lease.partition), lease)

    async def drain(self, lease: Lease) -> None:
        """Finish the commands in hand and publish all that they caused."""
        if await self._disputed.drop(lease.partition):
            return
        queue = names.command_queue(lease.partition)
        self._consumer.stop(queue)
        await self._consumer.drained(queue)
        await self._expiry.close(lease.partition)
        await self._publisher.close(lease.partition)
        await self._consumer.close(queue)

    async def close(self) -> None:
        """Finish the messages that belong to no partition."""
        for consumer, queue in ((self._consumer, names.UNROUTABLE), (self._queries, names.LOG)):
            consumer.stop(queue)
            await consumer.drained(queue)
            await consumer.close(queue)


def service(settings: CommandSettings) -> Service:
    """Describe this service to the session that runs it."""

    async def make_worker(opened: Opened) -> CommandWorker:
        return await CommandWorker.open(opened, settings)

    return Service(
        package="command_service",
        database_url=settings.event_store_url,
        make_worker=make_worker,
        probe=probe(settings.consent_partitions),
    )
