"""One session of a worker: from a database and a broker that answer, until one of them is lost.

Everything that a worker holds belongs to a session: connections, leases, what is in hand, what is
in memory. When anything breaks, the session ends and a new one begins from the facts.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import structlog

from shared.errors import Fenced
from shared.errors.connection import BROKER_ERRORS, DATABASES
from shared.postgres.connection import Connection, Pool
from shared.postgres.database import check_partitions, check_schema, connect_once, open_pool
from shared.postgres.surroundings import check_surroundings
from shared.rabbitmq.connection import Broker, connect, looping
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.settings import WorkerSettings
from shared.telemetry.metrics import OWNED
from shared.telemetry.readiness import Readiness
from shared.values.partition import Lease
from shared.worker.leases import LEASE_S, LeaseKeeper
from shared.worker.leaving import leave_at_once
from shared.worker.observer import Probe

POOL_SIZE: Final = 5
"""One more connection is the lease keeper's."""
HEARTBEAT_S: Final = 2
"""The broker takes a worker that is frozen for dead after two to three of these, and gives its
queues to the one that took its leases."""
ABANDON_S: Final = 2
END_S: Final = 5.0
"""How long a session may take to end once its leases ran out."""

VANISHED: Final = {"idle_in_transaction_session_timeout": f"{LEASE_S:g}s"}
"""A transaction of a worker that has fallen silent ends as its leases do: it may hold the row of a
partition that another one is to take."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Service:
    """What differs between the two services."""

    package: str
    database_url: str
    make_worker: Callable[["Opened"], Awaitable["Worker"]]
    probe: Probe
    database_settings: Mapping[str, str] = field(default_factory=dict)
    """PostgreSQL's own, for the sessions in which the work is done; leases are kept in another."""
    make_answerer: Callable[["Opened"], Awaitable["Answerer"]] | None = None
    """Makes what answers and does nothing else, where the service answers."""


@dataclass(frozen=True)
class Opened:
    """What a session has when it begins."""

    broker: Broker
    replies: ReplyPublisher
    pool: Pool
    may_write: Callable[[], bool]
    """Whether the leases still hold by this machine's clock."""
    readiness: Readiness


class Answerer(Protocol):
    """What answers, and does nothing else."""

    async def read(self) -> None:
        """Begin to read what is asked."""

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""

    async def close(self) -> None:
        """Finish what is in hand."""


class Worker(Protocol):
    """The work itself."""

    async def take(self, lease: Lease) -> None:
        """Begin to work on a partition."""

    async def drain(self, lease: Lease) -> None:
        """Return when all that is in hand of a partition is done, and nothing new is taken."""

    def loops(self) -> Sequence[Coroutine[None, None, None]]:
        """What runs as long as the session does."""

    async def close(self) -> None:
        """Finish what belongs to no partition."""


async def run_session(
    service: Service, settings: WorkerSettings, readiness: Readiness, stop: asyncio.Event
) -> None:
    """Work until `stop` is set and everything is drained and handed over.

    Raises whatever ended the session sooner; SettingsError and SchemaError need an operator.
    """
    owner = f"{settings.worker_id}/{secrets.token_hex(4)}"
    async with open_database(service, settings, readiness, owner) as database:
        session = _Session(service, settings, owner, database, readiness)
        async with session.watched(), open_broker(service, settings, readiness) as broker:
            await session.work(broker, stop)
    log.info("session.drained", owner=owner)


@dataclass(frozen=True)
class Database:
    """What a session has of its database."""

    pool: Pool
    keeping: Connection
    """Apart from the work: the leases end with it, or it sees how old is what can be read."""

    def cut(self) -> None:
        """End all connections now: whoever waits for an answer gets an error instead."""
        self.pool.terminate()
        self.keeping.terminate()


@asynccontextmanager
async def open_database(
    service: Service,
    settings: WorkerSettings,
    readiness: Readiness,
    owner: str,
    *,
    writes: bool = True,
) -> AsyncIterator[Database]:
    """Connect, and look whether all is as this version needs it; without `writes` to a standby.

    Raises SettingsError and SchemaError where an operator must mend something.
    """
    readiness.waits_for("database")
    url, package = service.database_url, service.package
    wanted = {**service.database_settings, **VANISHED}
    pool = await open_pool(url, name=owner, size=POOL_SIZE, package=package, settings=wanted)
    try:
        keeping = await connect_once(url, package, name=owner)
        try:
            await check_surroundings(keeping, url, DATABASES[package], writes=writes)
            await check_schema(pool, package)
            await check_partitions(pool, settings.consent_partitions)
            yield Database(pool, keeping)
        finally:
            keeping.terminate()
    finally:
        pool.terminate()


@asynccontextmanager
async def open_broker(
    service: Service, settings: WorkerSettings, readiness: Readiness
) -> AsyncIterator[Broker]:
    """Connect, and have the readiness tell what the session waits for, until it ends."""
    # The queues are part of the broker: reading them fails where one is missing.
    readiness.waits_for("broker")
    name = f"{service.package} {settings.worker_id}"
    try:
        async with connect(settings.rabbitmq_url, name=name, heartbeat_s=HEARTBEAT_S) as broker:
            broker.alarm.tell(partial(readiness.blocked, "session"))
            yield broker
    finally:
        readiness.renewals(None)
        readiness.blocked("session", "")


class _Session:
    """The work of a session, and the keeper of its leases."""

    def __init__(
        self,
        service: Service,
        settings: WorkerSettings,
        owner: str,
        database: Database,
        readiness: Readiness,
    ) -> None:
        self._service = service
        self._settings = settings
        self._owner = owner
        self._database = database
        self._readiness = readiness
        self._keeper = LeaseKeeper(
            database.keeping,
            owner,
            on_taken=lambda lease: _taken(self._worker, lease),
            on_drain=lambda lease: _drained(self._worker, lease),
        )
        self._ran_out = self._ended = False
        self._worker: Worker

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Bound, beside the session, how long it goes on without leases, and how long it ends.

        Raises Fenced where the leases ran out, whatever error that led to.
        """
        watching = asyncio.create_task(self._watch())
        try:
            yield
        except Exception as error:
            if self._ran_out:
                raise Fenced("the leases ran out: the database did not answer") from error
            raise
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        """Cut the database off once the leases ran out, then leave if that ends nothing.

        A link that falls silent would be waited for by whoever uses it, each time-out and its
        cancelling over the same link included. And what ends a session cancels its tasks once:
        should one of them swallow that, the session would neither work nor end.
        """
        await self._keeper.ran_out()
        self._ran_out = not self._ended
        log.warning("leases.ran_out", owner=self._owner, seconds=LEASE_S)
        self._database.cut()
        await asyncio.sleep(END_S)
        leave_at_once(f"the session did not end within {END_S:g} s of its leases")

    async def work(self, broker: Broker, stop: asyncio.Event) -> None:
        """Work until all is drained; whatever ends it sooner, the leases are given up."""
        replies = await ReplyPublisher.open(
            broker, self._settings.rabbitmq_url, self._readiness.report
        )
        pool, may_write = self._database.pool, self._keeper.is_valid
        self._worker = await self._service.make_worker(
            Opened(broker, replies, pool, may_write, self._readiness)
        )
        self._readiness.renewals(self._keeper.seconds_since_renewal)
        try:
            await self._run_until_drained(broker, stop)
        except BaseException:
            self._ended = True
            with suppress(Exception):
                async with asyncio.timeout(ABANDON_S):
                    await self._keeper.abandon()
            raise
        finally:
            with suppress(*BROKER_ERRORS):
                await replies.close()
            for number in range(self._settings.consent_partitions):
                OWNED.labels(number).set(0)

    async def _run_until_drained(self, broker: Broker, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            loops = (*self._worker.loops(), broker.wait_lost(), self._keeper.run())
            tasks = [group.create_task(looping(loop)) for loop in loops]
            await self._keeper.first_round.wait()
            self._readiness.is_ready()
            log.info("session.started", owner=self._owner, partitions=len(self._keeper.owned))
            await stop.wait()
            self._readiness.waits_for("drain")
            await self._keeper.hand_over_all()
            await self._worker.close()
            for task in tasks:
                task.cancel()


async def _taken(worker: Worker, lease: Lease) -> None:
    await worker.take(lease)
    OWNED.labels(lease.partition).set(1)
    log.info("partition.taken", partition=lease.partition, epoch=lease.epoch)


async def _drained(worker: Worker, lease: Lease) -> None:
    await worker.drain(lease)
    OWNED.labels(lease.partition).set(0)
    log.info("partition.handed_over", partition=lease.partition, epoch=lease.epoch)
