"""TLS that trusts whoever answers is refused before a word is sent."""

import asyncio
import os
import subprocess
from typing import Final

import pytest

from tests.servers.test_cli import CONSENT

REFUSED: Final = (
    "RABBITMQ_URL is wrong: no_verify_ssl switches the check of the broker's certificate off"
)


@pytest.mark.parametrize("value", ["1", "true", "yes", ""])
async def test_a_url_that_switches_the_check_of_certificates_off_is_refused(value: str) -> None:
    called = asyncio.Event()
    server = await asyncio.start_server(lambda *_: called.set(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"amqps://user:secret@127.0.0.1:{port}/?no_verify_ssl={value}"
    done = await asyncio.to_thread(list_consents, url)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {REFUSED}: leave that out")
    assert "secret" not in done.stderr
    assert not called.is_set()
    server.close()


def list_consents(url: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [CONSENT, "list", "p-1", "--within", "2"],
        env={**os.environ, "RABBITMQ_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
