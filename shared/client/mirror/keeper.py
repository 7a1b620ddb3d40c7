"""Keeps a mirror's file up with the log, in a thread, for as long as the mirror is open."""

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from shared.client.mirror.following import Following
from shared.client.mirror.writer import Writer
from shared.client.mirror.writer_lock import writing
from shared.client.subscription_queue import declare_passing, passing_name
from shared.errors import LogSetBack, NoAnswer, NotAllowed, NotNow
from shared.errors.connection import BROKER_ERRORS
from shared.errors.text import reason_of
from shared.event_log.follower import Follower
from shared.event_log.position_tracker import PositionTracker
from shared.event_log.set_back import LogPlace
from shared.messages.topic_patterns import EVERYTHING
from shared.rabbitmq.connection import AccessRefused, Broker, connect, looping_together
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.rabbitmq.rpc_client import Requests
from shared.values.oversized import LARGEST_EVENT

BATCH_EVENTS: Final = 100
"""Events written in one transaction, unless they are a page of the log."""
PREFETCH: Final = 500
PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
STOPPED_WITHIN_S: Final = 10.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """What is kept, and from where."""

    url: str
    path: Path
    partitions: int
    look_every: float


class Keeper:
    """A thread that waits until no other process writes the file, and then follows the log.

    Whatever goes wrong is tried again with growing pauses, and written into the file as the reason
    why what is known grows old.
    """

    def __init__(self, options: KeeperOptions) -> None:
        self._options = options
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._began = False
        self._said = ""

    def start(self) -> None:
        """Begin, and return at once."""
        self._started.clear()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="consent mirror", daemon=True
        )
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """End it, and let another process write the file."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        with suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(STOPPED_WITHIN_S)

    async def _run(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        keeping = asyncio.create_task(self._keep())
        await self._stopping.wait()
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping

    async def _keep(self) -> NoReturn:
        """Keep the file, once nobody else does, until cancelled."""
        path = self._options.path
        while True:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Exception),
                wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
                before_sleep=self._tell,
            ):
                with attempt:
                    async with writing(path.with_name(path.name + ".lock")):
                        await self._once()

    async def _once(self) -> None:
        """Follow over one connection; one that was used and is lost begins anew at once."""
        self._began = False
        with Writer.open(self._options.path, self._options.partitions) as writer:
            try:
                async with connect(self._options.url, name="consent mirror") as broker:
                    await self._over(broker, writer)
            except Exception as error:
                self._note(writer, error)
                if not self._began or not isinstance(error, (*BROKER_ERRORS, NotNow, NoAnswer)):
                    raise
                log.warning("mirror.lost", reason=reason_of(error))
        await asyncio.sleep(PAUSE_S)

    async def _over(self, broker: Broker, writer: Writer) -> None:
        queue = passing_name(self._options.url, "mirror")
        try:
            await declare_passing(broker, queue, [EVERYTHING])
            following = Following(await Requests.open(broker), writer, self._options.partitions)
            await following.begin()
        except AccessRefused as error:
            raise NotAllowed(
                f"not allowed to keep a mirror: {error}; the user needs the roles subscriber and "
                "inquirer"
            ) from error
        consumer = Consumer(broker, prefetch=PREFETCH, largest=LARGEST_EVENT)
        await consumer.open(queue, counts=False)
        follower = Follower(consumer, following.log_client, following, most=BATCH_EVENTS)
        for number, place in enumerate(writer.reached):
            follower.open(number, _tracker(place))
        log.info("mirror.started", queue=queue)
        self._began, self._said = True, ""
        await looping_together(
            consumer.keep_acknowledging(),
            follower.run(),
            follower.keep_up(),
            following.keep_looking(self._options.look_every),
            broker.wait_lost(),
        )

    def _note(self, writer: Writer, error: Exception) -> None:
        """Write down for all readers why nothing new comes in."""
        with suppress(NotNow):
            set_back = isinstance(error, LogSetBack)
            writer.note_trouble(f"{error}" if set_back else reason_of(error), set_back=set_back)

    def _tell(self, state: RetryCallState) -> None:
        """Say why the file is not kept, when the reason changes."""
        error = state.outcome.exception() if state.outcome else None
        reason = reason_of(error) if error else ""
        if reason != self._said:
            log.warning("mirror.waiting", reason=reason)
        self._said = reason


def _tracker(place: LogPlace) -> PositionTracker[Delivery]:
    return PositionTracker(place.position, event_id=place.event_id, generation=place.generation)
