"""A Docker engine that answers and has no images, as behind a wall, does not end the tests."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.compose import ROOT

OPEN = """
from tests.sandbox import open_sandbox
with open_sandbox(durable=False) as sandbox:
    print(type(sandbox.broker).__name__, sandbox.broker.answers())
"""


class Engine(BaseHTTPRequestHandler):
    """Tells its version, and has nothing else to give."""

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            self._answer(200, {"ApiVersion": "1.44", "MinAPIVersion": "1.24", "Version": "26.1"})
        else:
            self._answer(500, {"message": "no registry is reached"})

    do_POST = do_GET  # noqa: N815 - as the library calls it

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Serve such an engine, and a program `docker` that finds it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    Thread(target=server.serve_forever, daemon=True).start()
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho 26.1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    yield {
        "DOCKER_HOST": f"tcp://127.0.0.1:{server.server_port}",
        "PATH": os.pathsep.join((str(tmp_path), os.environ["PATH"])),
    }
    server.shutdown()
    server.server_close()


def run(engine: dict[str, str], **more: str) -> "subprocess.CompletedProcess[str]":
    without = {name: text for name, text in os.environ.items() if name != "CONSENT_SANDBOX"}
    return subprocess.run(
        [sys.executable, "-c", OPEN],
        env={**without, **engine, **more},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_programs_of_the_machine_serve_and_one_line_says_so(engine: dict[str, str]) -> None:
    done = run(engine)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("True\n")
    assert "Contained" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("A Docker engine answers, but can't be used (")
    assert line.endswith("taking the programs on this machine, as CONSENT_SANDBOX=programs does")


def test_who_asked_for_containers_gets_no_programs(engine: dict[str, str]) -> None:
    assert run(engine, CONSENT_SANDBOX="containers").returncode != 0
