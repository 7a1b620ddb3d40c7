"""The HTTP endpoints for operators: live, ready, metrics.

Whoever reaches the port can cost little: a connection carries one request, ends after some seconds
whatever was sent, and the metrics are counted up once for all who ask at the same time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from time import monotonic
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.errors import SettingsError
from shared.telemetry.readiness import Readiness

EVERYWHERE: Final = "*"
"""In place of an address: all of them, of both families."""
PATIENCE_S: Final = 5.0
"""A connection that is open after one to two times as long is cut off."""
SHUTDOWN_TIMEOUT_S: Final = 1.0
EFFORT: Final = 10
"""The metrics are counted up again after a pause of so many times what that takes."""


@asynccontextmanager
async def serve_operations(host: str, port: int, readiness: Readiness) -> AsyncIterator[None]:
    """Serve health and metrics at an address; port 0 serves nothing."""
    if port == 0:
        yield
        return
    runner = web.AppRunner(
        _application(readiness), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
    )
    await runner.setup()
    try:
        address = None if host == EVERYWHERE else host
        await web.TCPSite(runner, address, port, reuse_address=True).start()
    except OSError as error:
        await runner.cleanup()
        raise SettingsError(
            f"HTTP_PORT is {port}, which can't be used ({error.strerror}): "
            f"choose a free port, or 0 for none; HTTP_HOST is {host}, one of this machine's"
        ) from None
    ending = asyncio.create_task(_end_slow_ones(runner))
    try:
        yield
    finally:
        ending.cancel()
        await runner.cleanup()


async def _end_slow_ones(runner: web.AppRunner) -> None:
    """Cut connections off that were open the last time already: no request takes so long."""
    before: set[web.RequestHandler] = set()
    while True:
        await asyncio.sleep(PATIENCE_S)
        now = set(runner.server.connections) if runner.server else set()
        for connection in before & now:
            if connection.transport is not None:
                connection.transport.abort()
        before = now - before


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


async def _one_request(_: web.BaseRequest, response: web.StreamResponse) -> None:
    """Close the connection behind each answer, and say so."""
    response.headers["Connection"] = "close"
    response.force_close()


def _application(readiness: Readiness) -> web.Application:
    counted = _Metrics()

    async def live(_: web.Request) -> web.Response:
        if readiness.is_live():
            return web.json_response({"status": "live"})
        return web.json_response({"status": "stuck", "missing": readiness.missing}, status=503)

    async def ready(_: web.Request) -> web.Response:
        troubles = [asdict(trouble) for trouble in readiness.troubles()]
        if not troubles:
            return web.json_response({"status": "ready"})
        body = {"status": "not_ready", **troubles[0], "troubles": troubles}
        return web.json_response(body, status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=await counted.text(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    application = web.Application()
    application.router.add_get("/health/live", live)
    application.router.add_get("/health/ready", ready)
    application.router.add_get("/metrics", metrics)
    application.on_response_prepare.append(_one_request)
    return application
