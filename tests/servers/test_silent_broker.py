"""Packets that vanish, as behind a wall that answers nothing, are named as what they are."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tests.support.deployment import Deployment

PROGRAMS: Final = (
    ("-m", "command_service", "topology"),
    ("-c", "from shared.cli.consent import main; main()", "list", "p-1"),
)


def test_a_server_that_says_nothing_is_named_with_a_reason(deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as threads:
        url = f"amqp://user:secret@127.0.0.1:{silent.getsockname()[1]}/"
        environment = deployment.environment(RABBITMQ_URL=url, COLUMNS="200")

        def run(words: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [sys.executable, *words],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        both = list(threads.map(run, PROGRAMS))
    for done in both:
        assert done.returncode == 3
        (line,) = done.stderr.splitlines()
        assert "not reached: the broker does not answer in time: check" in line
