"""Many requests that wait for one broker share their tries, and leave it in peace."""

import asyncio
from contextlib import suppress
from typing import Final

from shared.client import ConsentClient
from shared.client.client import PAUSE_S
from shared.errors import NoAnswer

REQUESTS: Final = 50
WITHIN_S: Final = 2.0


async def test_all_pending_requests_try_one_connection_after_the_other() -> None:
    tries = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    client = ConsentClient(f"amqp://user:password@{host}:{port}/", within=WITHIN_S)
    pending = [client.has_consent(f"p-{n}", "doctor", "d-1") for n in range(REQUESTS)]
    ended = await asyncio.gather(*pending, return_exceptions=True)
    server.close()
    assert all(isinstance(one, NoAnswer) for one in ended)
    assert 2 <= tries <= WITHIN_S / PAUSE_S + 1
