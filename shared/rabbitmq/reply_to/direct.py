"""Sends replies to RabbitMQ's direct reply-to, where anybody may have made the address up.

Such an address names a process of the broker. Where it is forged, the broker (3.10 at least) ends
the connection that sends to it, and whatever is on its way there is lost. So two connections are
kept: one for addresses that are proven good, and one on which the others are tried, by a task
that nobody waits for. Whoever replies never waits for a connection either.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

import structlog

from shared.errors.connection import BROKER_ERRORS
from shared.errors.text import reason_of
from shared.rabbitmq.publishing import Outgoing
from shared.rabbitmq.reply_to.line import ReplyLine
from shared.rabbitmq.reply_to.trials import Suspended, Trials
from shared.telemetry.metrics import REPLIES_LOST, REPLIES_WAITING

MAKE_SURE_EVERY_S: Final = 0.05
"""How often the broker is asked whether all that was sent is carried out."""
MOST_FAILURES: Final = 3
"""How often a reply is sent alone over connections that break for no reason that is told."""
PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
FLUSH_TURNS: Final = 40
"""How long closing waits for trials: two seconds."""

Tell = Callable[[str, str, str], None]
"""Told where it looked, what is missing (nothing where all is right), and why."""

log = structlog.get_logger()


class DirectReplies:
    """Replies to direct addresses; a forged one costs nobody else's reply.

    When the connection for proven addresses is lost, what may have been lost with it is sent
    again; so a reply may come twice.
    """

    def __init__(self, url: str, tell: Tell) -> None:
        self._url = url
        self._tell = tell
        self._trials = Trials()
        self._line: ReplyLine | None = None
        self._trial_line: ReplyLine | None = None
        self._waits = asyncio.Event()
        self._sent = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        """Empty before the first reply, so that nothing is left of what never began."""

    async def send(self, replies: Sequence[Outgoing]) -> None:
        """Send what goes to proven addresses, and leave the others to their trial."""
        self._check_tasks()
        line, now = self._line, monotonic()
        proven: list[Outgoing] = []
        for reply in replies:
            if self._trials.is_condemned(reply.routing_key, now):
                REPLIES_LOST.labels("forged").inc()
            elif line and line.is_open and self._trials.is_proven(reply.routing_key):
                proven.append(reply)
            else:
                self._suspend(reply)
        if proven and line:
            self._sent.set()
            with suppress(*BROKER_ERRORS):  # then they are sent again
                await line.send(proven)

    def _check_tasks(self) -> None:
        """Begin where nothing has begun; raises what a task ended with."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._keep_trying()),
                asyncio.create_task(self._keep_sure()),
            ]
            REPLIES_WAITING.set_function(self._trials.__len__)
        for task in self._tasks:
            if task.done():
                task.result()

    async def close(self) -> None:
        """Wait a little for what is on its way, then close both connections."""
        for _ in range(FLUSH_TURNS):
            if not len(self._trials) and not (self._line and self._line.unsure):
                break
            await asyncio.sleep(MAKE_SURE_EVERY_S)
        await self.abandon()

    async def abandon(self) -> None:
        """Close both connections at once."""
        while not all(task.done() for task in self._tasks):
            for task in self._tasks:
                task.cancel()  # again, since a library may swallow one
            await asyncio.wait(self._tasks, timeout=PAUSE_S)
        self._tell("replies", "", "")
        await self._close(self._line)
        await self._close(self._trial_line)
        self._line = self._trial_line = None

    def _suspend(self, reply: Outgoing) -> None:
        if self._trials.suspend(reply):
            self._waits.set()
        else:
            REPLIES_LOST.labels("no_room").inc()

    async def _keep_sure(self) -> None:
        """Find out again and again whether what was sent to proven addresses is carried out."""
        while True:
            await self._sent.wait()
            await asyncio.sleep(MAKE_SURE_EVERY_S)
            self._sent.clear()
            line = self._line
            if line is None:
                continue
            try:
                await line.barrier()
            except BROKER_ERRORS as error:
                await self._begin_anew(line, error)
            if line.unsure:
                self._sent.set()

    async def _begin_anew(self, line: ReplyLine, error: BaseException) -> None:
        """Doubt every address, and send again what may be lost."""
        unsure = list(line.unsure)
        log.warning("replies.doubted", replies=len(unsure), reason=reason_of(error))
        self._line = None
        self._trials.doubt_all()
        for reply in unsure:
            self._suspend(reply)
        await self._close(line)

    async def _keep_trying(self) -> None:
        """Try the addresses that wait, some together, until cancelled."""
        pause = PAUSE_S
        while True:
            await self._waits.wait()
            batch: list[Suspended] = []
            try:
                await self._open_lines()
                batch = self._trials.next()
                if batch:
                    await self._try(batch)
                else:
                    self._waits.clear()
                pause = PAUSE_S
            except BROKER_ERRORS as error:
                self._tell("replies", "replies", f"no connection to send them: {reason_of(error)}")
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _open_lines(self) -> None:
        """Open what is not open; raises BROKER_ERRORS."""
        if self._trial_line is None or not self._trial_line.is_open:
            await self._close(self._trial_line)
            self._trial_line = None
            self._trial_line = await ReplyLine.open(self._url, "replies on trial")
        if self._line is None:
            self._line = await ReplyLine.open(self._url, "direct replies")
        elif not self._line.is_open:
            self._sent.set()  # whoever makes sure finds it lost
        self._tell("replies", "", "")

    async def _try(self, batch: Sequence[Suspended]) -> None:
        """Send replies to addresses that are not proven, and note what that did."""
        line = self._trial_line
        assert line is not None  # noqa: S101 - it was just opened
        try:
            await line.send([message for suspended in batch for message in suspended.messages])
            await line.barrier()
        except BROKER_ERRORS as error:
            self._trial_line = None
            self._failed(batch, line, error)
            await self._close(line)
        else:
            self._trials.survived(batch)

    def _failed(self, batch: Sequence[Suspended], line: ReplyLine, error: BaseException) -> None:
        """Blame the address that was alone; try the others in smaller groups."""
        first = batch[0]
        first.failures += len(batch) == 1
        if len(batch) == 1 and (line.was_refused() or first.failures >= MOST_FAILURES):
            log.warning(
                "reply.refused",
                correlation_ids=[
                    message.properties.correlation_id for message in first.messages[:3]
                ],
                replies=len(first.messages),
                reason=reason_of(error),
            )
            REPLIES_LOST.labels("forged").inc(len(first.messages))
            self._trials.condemn(first, monotonic())
        else:
            self._trials.failed(batch)

    async def _close(self, line: ReplyLine | None) -> None:
        if line is not None:
            with suppress(*BROKER_ERRORS):
                await line.close()
