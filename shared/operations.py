"""The HTTP endpoints for operators: live, ready, metrics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.errors import SettingsError
from shared.readiness import Readiness


@asynccontextmanager
async def serve_operations(port: int, readiness: Readiness) -> AsyncIterator[None]:
    """Serve health and metrics on a port of all interfaces; port 0 serves nothing."""
    if port == 0:
        yield
        return
    runner = web.AppRunner(_application(readiness), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, reuse_address=True).start()
    except OSError as error:
        await runner.cleanup()
        raise SettingsError(
            f"HTTP_PORT is {port}, which can't be used ({error.strerror}): "
            "choose a free port, or 0 for none"
        ) from None
    try:
        yield
    finally:
        await runner.cleanup()


def _application(readiness: Readiness) -> web.Application:
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
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.router.add_get("/health/live", live)
    application.router.add_get("/health/ready", ready)
    application.router.add_get("/metrics", metrics)
    return application
