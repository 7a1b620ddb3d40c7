"""Packets that vanish, as behind a wall that answers nothing, are named as what they are."""

import socket
import subprocess
import sys

import pytest

from tests.support.deployment import Deployment


@pytest.mark.parametrize("words", [("command_service", "topology"), ("shared.cli", "consent")])
def test_a_server_that_says_nothing_is_named_with_a_reason(
    deployment: Deployment, words: tuple[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://user:secret@127.0.0.1:{silent.getsockname()[1]}/"
        main = "from shared.cli.consent import main; main()"
        program = ["-m", *words] if words[1] == "topology" else ["-c", main, "list", "p-1"]
        done = subprocess.run(
            [sys.executable, *program],
            env=deployment.environment(RABBITMQ_URL=url, COLUMNS="200"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "not reached: the broker does not answer in time: check" in line
