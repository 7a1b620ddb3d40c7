"""The HTTP endpoints for operators: live, ready, metrics.

Whoever reaches the port can cost little: a connection carries one request, ends after some seconds
whatever was sent, and the metrics are counted up once for all who ask at the same time.
"""

import asyncio
import json
from asyncio import IncompleteReadError, LimitOverrunError, StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from http import HTTPStatus
from time import monotonic
from typing import Final, TypeAlias

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.errors import SettingsError
from shared.telemetry.readiness import Readiness

EVERYWHERE: Final = "*"
"""In place of an address: all of them, of both families."""
PATIENCE_S: Final = 5.0
"""A connection that is open so long is cut off."""
SHUTDOWN_TIMEOUT_S: Final = 1.0
EFFORT: Final = 10
"""The metrics are counted up again after a pause of so many times what that takes."""
LARGEST_REQUEST: Final = 8_192
"""Bytes of the request's line and its headers."""
END_OF_HEADERS: Final = b"\r\n\r\n"
JSON: Final = "application/json; charset=utf-8"

Answer: TypeAlias = tuple[HTTPStatus, str, bytes]
"""Its status, the type of its content, and that."""


@asynccontextmanager
async def serve_operations(host: str, port: int, readiness: Readiness) -> AsyncIterator[None]:
    """Serve health and metrics at an address; port 0 serves nothing."""
    if port == 0:
        yield
        return
    operations = _Operations(readiness)
    try:
        address = None if host == EVERYWHERE else host
        server = await asyncio.start_server(
            operations.serve, address, port, limit=LARGEST_REQUEST, reuse_address=True
        )
    except OSError as error:
        raise SettingsError(
            f"HTTP_PORT is {port}, which can't be used ({error.strerror}): "
            f"choose a free port, or 0 for none; HTTP_HOST is {host}, one of this machine's"
        ) from None
    try:
        yield
    finally:
        server.close()
        await operations.end()


class _Metrics:
    """The metrics as text: however many ask, they cost the same.

    Whoever asks gets what is counted afterwards, since a command that was seen answered may be
    looked for here at once; those who ask during the pause wait for its end, and share one text.
    """

    def __init__(self) -> None:
        self._not_before = 0.0
        self._counting: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        """Count them up, some hundredths of a second later where that was just done."""
        if self._counting is None:
            self._counting = asyncio.create_task(self._count())
        return await asyncio.shield(self._counting)

    async def _count(self) -> bytes:
        await asyncio.sleep(self._not_before - monotonic())
        self._counting = None
        began = monotonic()
        text = generate_latest()
        now = monotonic()
        self._not_before = now + EFFORT * (now - began)
        return text


class _Operations:
    """Answers each connection's one request."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._metrics = _Metrics()
        self._serving: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answer, and close the connection."""
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            with suppress(OSError, IncompleteReadError):  # they ask no more
                async with asyncio.timeout(PATIENCE_S):
                    writer.write(await self._answered(reader))
                    writer.close()
                    await writer.wait_closed()
        finally:
            self._serving.discard(task)
            writer.transport.abort()

    async def end(self) -> None:
        """Give those who asked already a moment, and cut all others off."""
        if serving := {task for task in self._serving if task is not None}:
            _, slow = await asyncio.wait(serving, timeout=SHUTDOWN_TIMEOUT_S)
            for task in slow:
                task.cancel()

    async def _answered(self, reader: StreamReader) -> bytes:
        try:
            asked = await reader.readuntil(END_OF_HEADERS)
            method, target, _ = asked.partition(b"\r\n")[0].decode("ascii").split(" ")
        except (LimitOverrunError, ValueError):
            return _written(_said(HTTPStatus.BAD_REQUEST))
        found = await self._answer(method, target.partition("?")[0])
        return _written(found, without_content=method == "HEAD")

    async def _answer(self, method: str, path: str) -> Answer:
        if path not in {"/health/live", "/health/ready", "/metrics"}:
            return _said(HTTPStatus.NOT_FOUND)
        if method not in {"GET", "HEAD"}:
            return _said(HTTPStatus.METHOD_NOT_ALLOWED)
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, await self._metrics.text()
        return self._live() if path == "/health/live" else self._ready()

    def _live(self) -> Answer:
        if self._readiness.is_live():
            return _json({"status": "live"})
        return _json({"status": "stuck", "missing": self._readiness.missing}, is_well=False)

    def _ready(self) -> Answer:
        troubles = [asdict(trouble) for trouble in self._readiness.troubles()]
        if not troubles:
            return _json({"status": "ready"})
        body = {"status": "not_ready", **troubles[0], "troubles": troubles}
        return _json(body, is_well=False)


def _json(content: object, *, is_well: bool = True) -> Answer:
    status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
    return status, JSON, json.dumps(content).encode()


def _said(status: HTTPStatus) -> Answer:
    return status, "text/plain; charset=utf-8", f"{status.value}: {status.phrase}".encode()


def _written(answer: Answer, *, without_content: bool = False) -> bytes:
    status, type_, content = answer
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {type_}\r\n"
        f"Content-Length: {len(content)}\r\n"
        + ("Allow: GET, HEAD\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else "")
        + "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if without_content else content)
