"""Hears when the broker is short of memory or disk: then it reads nothing from whoever publishes.

It says so in a frame of its own, to a connection that has published since; heartbeats go on. What
was written waits, and is read once there is room again: nothing is lost, and nothing needs doing.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from aiormq.abc import AbstractConnection
from pamqp.commands import Connection

from shared.errors import BrokerBlocked

Result = TypeVar("Result")
Handler = Callable[[Any], Coroutine[Any, Any, None]]

_HANDLER: Final = "_Connection__handle_connection_"
"""How aiormq names what it does with these frames; it keeps the reason to itself."""
_OVER: Final = Connection.Unblocked()
"""Told to aiormq where a blocked connection ends, or whoever waits for it would wait for ever."""


class Alarm:
    """Whether the broker blocks a connection, and why."""

    def __init__(self, connection: AbstractConnection) -> None:
        self.reason = ""
        """In the broker's words, as `low on disk`; empty while nothing is blocked."""
        self._raised = asyncio.Event()
        self._tell: Callable[[str], None] = lambda _: None
        self._hear(connection, "blocked", self._blocked)
        release = self._hear(connection, "unblocked", self._unblocked)
        self._releases = connection.closing
        self._releases.add_done_callback(
            lambda _: self.reason and asyncio.ensure_future(release(_OVER))
        )

    def tell(self, whom: Callable[[str], None]) -> None:
        """Have somebody told the reason now, and whenever it changes."""
        self._tell = whom
        whom(self.reason)

    def check(self) -> None:
        """Raise BrokerBlocked while the connection is blocked."""
        if self.reason:
            raise BrokerBlocked(self.reason)

    async def unless_raised(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return what the work does; raise BrokerBlocked as soon as the connection is blocked."""
        doing, raised = (asyncio.ensure_future(awaited) for awaited in (work, self._raised.wait()))
        try:
            await asyncio.wait((doing, raised), return_when=asyncio.FIRST_COMPLETED)
            self.check()
            return await doing  # type: ignore[return-value] # of the two this is the work
        finally:
            doing.cancel()
            raised.cancel()

    def _hear(self, connection: AbstractConnection, what: str, also: Handler) -> Handler:
        own: Handler = getattr(connection, _HANDLER + what)

        async def heard(frame: object) -> None:
            await own(frame)
            await also(frame)

        setattr(connection, _HANDLER + what, heard)
        return own

    async def _blocked(self, frame: Connection.Blocked) -> None:
        self.reason = frame.reason or "for no reason that it gives"
        self._raised.set()
        self._tell(self.reason)

    async def _unblocked(self, _: Connection.Unblocked) -> None:
        self.reason = ""
        self._raised.clear()
        self._tell(self.reason)
