"""One session of a worker: from a database and a broker that answer, until one of them is lost.

Everything that a worker holds belongs to a session: connections, leases, what is in hand, what is
in memory. When anything breaks, the session ends and a new one begins from the facts.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from shared.broker import BROKER_ERRORS, Broker, connect
from shared.database import Pool, check_partitions, check_schema, open_pool
from shared.leases import Lease, LeaseKeeper
from shared.metrics import OWNED
from shared.observer import Outlook
from shared.readiness import Readiness
from shared.reply_channel import ReplyChannel
from shared.settings import WorkerSettings

POOL_SIZE: Final = 6
ABANDON_S: Final = 2

log = structlog.get_logger()


@dataclass(frozen=True)
class Service:
    """What differs between the two services."""

    package: str
    database_url: str
    make_worker: Callable[["Opened"], Awaitable["Worker"]]
    outlook: Outlook


@dataclass(frozen=True)
class Opened:
    """What a session has when it begins."""

    broker: Broker
    replies: ReplyChannel
    pool: Pool
    may_write: Callable[[], bool]
    """Whether the leases still hold by this machine's clock."""
    readiness: Readiness


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
    readiness.waits_for("database")
    owner = f"{settings.worker_id}/{secrets.token_hex(4)}"
    pool = await open_pool(
        service.database_url, name=owner, size=POOL_SIZE, package=service.package
    )
    try:
        await check_schema(pool, service.package)
        await check_partitions(pool, settings.consent_partitions)
        readiness.waits_for(
            "broker"
        )  # its queues included: reading them fails where one is missing
        name = f"{service.package} {settings.worker_id}"
        async with connect(settings.rabbitmq_url, name=name) as broker:
            await _work(service, settings, owner, broker, pool, readiness, stop)
    finally:
        pool.terminate()


async def _work(
    service: Service,
    settings: WorkerSettings,
    owner: str,
    broker: Broker,
    pool: Pool,
    readiness: Readiness,
    stop: asyncio.Event,
) -> None:
    keeper = LeaseKeeper(
        pool,
        owner,
        on_taken=lambda lease: _taken(worker, lease),
        on_drain=lambda lease: _drained(worker, lease),
    )
    readiness.renewals(keeper.seconds_since_renewal)
    replies = await ReplyChannel.open(broker, settings.rabbitmq_url)
    worker = await service.make_worker(Opened(broker, replies, pool, keeper.is_valid, readiness))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(loop) for loop in worker.loops()]
            tasks.append(group.create_task(broker.wait_lost()))
            tasks.append(group.create_task(keeper.run()))
            await keeper.first_round.wait()
            readiness.is_ready()
            log.info("session.started", owner=owner, partitions=len(keeper.owned))
            await stop.wait()
            readiness.waits_for("drain")
            await keeper.hand_over_all()
            await worker.close()
            for task in tasks:
                task.cancel()
    except BaseException:
        with suppress(Exception):
            await asyncio.wait_for(keeper.abandon(), ABANDON_S)
        raise
    finally:
        readiness.renewals(None)
        with suppress(*BROKER_ERRORS):
            await replies.close()
        for number in range(settings.consent_partitions):
            OWNED.labels(number).set(0)
    log.info("session.drained", owner=owner)


async def _taken(worker: Worker, lease: Lease) -> None:
    await worker.take(lease)
    OWNED.labels(lease.partition).set(1)
    log.info("partition.taken", partition=lease.partition, epoch=lease.epoch)


async def _drained(worker: Worker, lease: Lease) -> None:
    await worker.drain(lease)
    OWNED.labels(lease.partition).set(0)
    log.info("partition.handed_over", partition=lease.partition, epoch=lease.epoch)
