"""Wires between a worker and what it depends on, that can be cut, silenced, slowed and trickled.

They run in a thread of their own, so that a busy publisher beside them slows nothing down.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

HOST = "127.0.0.1"
CHUNK = 65_536

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Disorder:
    """What is wrong with a wire: towards the server (up), towards the worker (down), or both."""

    kind: Literal["refuse", "silence", "delay", "trickle"]
    directions: tuple[Direction, ...] = ("up", "down")
    seconds: float = 0.0
    """For each chunk that is delayed, or after each byte that trickles."""
    waits_for: tuple[bytes, ...] = ()
    """Silence that begins with the first chunk that has one of these in it."""


class Link:
    """A port that leads to a server."""

    def __init__(self, wires: "Wires", url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._wires = wires
        self._target = (parts.hostname, parts.port)
        self._parts = parts
        self._disorder: Disorder | None = None
        self.silent = False
        """Whether something is being held back."""
        self._changed = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        listening = socket.create_server((HOST, 0))
        self.port = listening.getsockname()[1]
        wires.do(self._listen(listening))

    @property
    def url(self) -> str:
        """The server's URL, by way of this wire."""
        credentials = self._parts.netloc.rpartition("@")[0]
        netloc = f"{credentials}@{HOST}:{self.port}"
        return urlunsplit(self._parts._replace(netloc=netloc))

    def disturb(self, disorder: Disorder | None) -> None:
        """Put this disorder in the place of the one before; None heals."""
        self._wires.do(self._disturb(disorder))

    def cut(self) -> None:
        """Break every connection now; new ones are let through."""
        self._wires.do(self._cut())

    async def _listen(self, listening: socket.socket) -> None:
        self._wires.servers.append(await asyncio.start_server(self._accept, sock=listening))

    async def _disturb(self, disorder: Disorder | None) -> None:
        self._disorder = disorder
        self.silent = False
        self._changed.set()
        self._changed = asyncio.Event()
        if disorder is not None and disorder.kind == "refuse":
            await self._cut()

    async def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):  # cancelled when the wires are closed
            writer.transport.abort()
        finally:
            self._open.discard(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (disorder := self._disorder) is not None and disorder.kind in ("refuse", "silence"):
            if disorder.kind == "refuse":
                writer.transport.abort()
                return
            if not self._is_silent(disorder, b""):
                break
            await self._changed.wait()
        from_server, to_server = await asyncio.open_connection(*self._target)
        self._open.add(to_server)
        try:
            await asyncio.gather(
                self._pump(reader, to_server, "up"), self._pump(from_server, writer, "down")
            )
        finally:
            self._open.discard(to_server)
            to_server.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        """Carry bytes until either end closes; then the other end is closed too."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._carry(data, writer, direction)
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def _carry(self, data: bytes, writer: asyncio.StreamWriter, direction: Direction) -> None:
        """Write a chunk, as the disorder of the moment lets it through."""
        while data:
            disorder, changed, most = self._disorder, self._changed, len(data)
            if disorder is not None and direction in disorder.directions:
                if disorder.kind == "silence" and self._is_silent(disorder, data):
                    await changed.wait()
                    continue
                most = 1 if disorder.kind == "trickle" else most
                if await _within(disorder.seconds, changed):
                    continue
            writer.write(data[:most])
            await writer.drain()
            data = data[most:]

    def _is_silent(self, disorder: Disorder, data: bytes) -> bool:
        awaited = disorder.waits_for
        self.silent = self.silent or not awaited or any(one in data for one in awaited)
        return self.silent


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for the event, no longer than that; whether it came."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


class Wires:
    """All wires, and the thread in which they run."""

    def __init__(self) -> None:
        self.servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._thread.start()

    def lay(self, url: str) -> Link:
        """Lay a wire to the server of a URL."""
        return Link(self, url)

    def do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something among the wires, and wait for it."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self) -> None:
        """End all wires."""
        self.do(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    async def _cancel_all(self) -> None:
        for server in self.servers:
            server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def open_wires() -> Iterator[Wires]:
    """Run wires until the end of the block."""
    wires = Wires()
    try:
        yield wires
    finally:
        wires.close()
