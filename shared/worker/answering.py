"""One session of a worker that only answers: it has no leases and writes nothing.

So a standby of the database will do. What it must not do is answer from one that fell behind and
knows nothing of it: a consent that was revoked meanwhile would still be given as one. Whoever
projects writes a sign of life every second, by which the age of what is read is known.
"""

import asyncio
import secrets
from contextlib import suppress
from time import monotonic
from typing import Final

import structlog

from shared.errors import NotConnected
from shared.errors.connection import BROKER_ERRORS, DATABASES, Server
from shared.postgres.statements import statement
from shared.rabbitmq.connection import Broker, looping
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.settings import WorkerSettings
from shared.telemetry.readiness import Readiness
from shared.worker.leases import LEASE_S
from shared.worker.session import Database, Opened, Service, open_broker, open_database

OLDEST_S: Final = 10.0
"""What is older is no answer any more."""
LOOK_EVERY_S: Final = 1.0
PATIENCE_S: Final = 5.0
"""A database that does not answer a look within this time counts as gone."""

_READ_AGE = statement("shared.postgres", "read_age")

log = structlog.get_logger()


async def run_answering_session(
    service: Service, settings: WorkerSettings, readiness: Readiness, stop: asyncio.Event
) -> None:
    """Answer until `stop` is set and all in hand is answered.

    Raises whatever ended the session sooner; SettingsError and SchemaError need an operator.
    """
    owner = f"{settings.worker_id}/{secrets.token_hex(4)}"
    async with open_database(service, settings, readiness, owner, writes=False) as database:
        watch = _Watch(database, DATABASES[service.package])
        await watch.look()
        async with open_broker(service, settings, readiness) as broker:
            await _answer(service, settings, readiness, watch, broker, stop)
    log.info("session.drained", owner=owner)


async def _answer(
    service: Service,
    settings: WorkerSettings,
    readiness: Readiness,
    watch: "_Watch",
    broker: Broker,
    stop: asyncio.Event,
) -> None:
    replies = await ReplyPublisher.open(broker, settings.rabbitmq_url, readiness.report)
    assert service.make_answerer is not None  # noqa: S101 - it is offered by no other service
    answerer = await service.make_answerer(
        Opened(broker, replies, watch.database.pool, _never, readiness)
    )
    readiness.renewals(watch.seconds_since_look)
    try:
        await answerer.read()
        async with asyncio.TaskGroup() as group:
            loops = (*answerer.loops(), broker.wait_lost(), watch.run())
            tasks = [group.create_task(looping(loop)) for loop in loops]
            readiness.is_ready()
            log.info("session.started", answers_only=True)
            await stop.wait()
            readiness.waits_for("drain")
            await answerer.close()
            for task in tasks:
                task.cancel()
    finally:
        with suppress(*BROKER_ERRORS):
            await replies.close()


def _never() -> bool:
    """Nothing may be written."""
    return False


class _Watch:
    """Sees that the database answers, and how old what it has is."""

    def __init__(self, database: Database, server: Server) -> None:
        self.database = database
        self._server = server
        self._looked_at = monotonic()

    def seconds_since_look(self) -> float:
        """How long ago a look found all well."""
        return monotonic() - self._looked_at

    async def run(self) -> None:
        """Look until cancelled; raises NotConnected where the database is gone or fell behind."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Look once; what else waits for a database that is gone gets an error first."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                age = await self.database.keeping.fetchval(_READ_AGE, LEASE_S)
        except TimeoutError:
            self.database.cut()
            silent = f"{self._server.name} does not answer within {PATIENCE_S:g} s"
            raise NotConnected(silent) from None
        if age is None or age > OLDEST_S:
            raise NotConnected(_too_old(self._server, age))
        self._looked_at = monotonic()


def _too_old(server: Server, age: float | None) -> str:
    behind = "of an unknown age" if age is None else f"{age:.0f} s old"
    return (
        f"what {server.name} has here is {behind}, and more than {OLDEST_S:g} s is no answer: see "
        "whether the standby follows its primary, and whether a worker projects there"
    )
