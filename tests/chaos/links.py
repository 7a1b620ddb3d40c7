"""Wires between a worker and what it depends on, that can be cut, silenced, slowed and trickled.

They run in a thread of their own, so that a busy publisher beside them slows nothing down.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from random import sample
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from shared.values.several_hosts import one_by_one

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
        """Lead to the host of a URL; where it names several, to one that can be reached."""
        parts = urlsplit(url)
        self._wires = wires
        self._targets = _hosts(parts.netloc)
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
        from_server, to_server = await self._reach_one()
        self._open.add(to_server)
        try:
            await asyncio.gather(
                self._pump(reader, to_server, "up"), self._pump(from_server, writer, "down")
            )
        finally:
            self._open.discard(to_server)
            to_server.transport.abort()

    async def _reach_one(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to one of the targets; what is frozen accepts connections, too."""
        *some, last = sample(self._targets, len(self._targets))
        for target in some:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(*target)
        return await asyncio.open_connection(*last)

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


class Bundle:
    """A wire to each host of a URL that names several; what happens to one happens to all."""

    def __init__(self, wires: "Wires", url: str) -> None:
        self._url = url
        self._links = [Link(wires, host) for host in one_by_one(url)]

    @property
    def url(self) -> str:
        """The URL of all hosts, by way of these wires."""
        ports = ",".join(f"{HOST}:{link.port}" for link in self._links)
        parts = urlsplit(self._url)
        login = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{login}@{ports}"))

    @property
    def silent(self) -> bool:
        """Whether something is being held back."""
        return any(link.silent for link in self._links)

    def disturb(self, disorder: Disorder | None) -> None:
        """Put this disorder in the place of the one before; None heals."""
        for link in self._links:
            link.disturb(disorder)

    def cut(self) -> None:
        """Break every connection now; new ones are let through."""
        for link in self._links:
            link.cut()


Wire = Link | Bundle


def _hosts(netloc: str) -> list[tuple[str, int]]:
    hosts = netloc.rpartition("@")[2].split(",")
    return [(host, int(port)) for host, _, port in (each.partition(":") for each in hosts)]


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for the event, no longer than that; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
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
        """Lay a wire to the server of a URL, or to one of its servers."""
        return Link(self, url)

    def lay_all(self, url: str) -> Wire:
        """Lay a wire to each server of a URL."""
        return Bundle(self, url) if len(one_by_one(url)) > 1 else Link(self, url)

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
        await asyncio.sleep(0)  # who was just accepted has begun: cancelled before, it stays open
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
