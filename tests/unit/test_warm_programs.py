"""A program that is forked from a warm process is like one that was started from nothing."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes can't be adopted there"),
    pytest.mark.skipif("CONSENT_COLD" in os.environ, reason="all start cold"),
]
WORDS = [sys.executable, "-m", "command_service", "migrate"]
CONSENT = Path(sys.executable).with_name("consent")


@pytest.fixture
def silent() -> Iterator[dict[str, str]]:
    """Name a database that takes connections and says nothing, so that who asks it stays."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yield {**os.environ, "EVENT_STORE_URL": f"postgresql://user@127.0.0.1:{port}/store"}


def begin(environment: dict[str, str], **more: Any) -> "subprocess.Popen[Any]":  # noqa: ANN401
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return warm.Popen(WORDS, env=environment, **{**piped, **more})


def is_warm(process: "subprocess.Popen[Any]") -> bool:
    return warm.__name__ in Path(f"/proc/{process.pid}/cmdline").read_text()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (WORDS, 2),
        ([CONSENT, "--help"], 0),
        ([CONSENT, "partition", "p-1"], 0),
        ([CONSENT.name, "partition", "p-1"], 0),
        ([CONSENT, "partition", "p-1", "p-2"], 2),
        ([CONSENT, "check", "-"], 2),
    ],
)
def test_it_says_the_words_and_has_the_exit_code_of_a_cold_one(
    words: list[str | Path], code: int
) -> None:
    without = {name: text for name, text in os.environ.items() if not name.endswith("_URL")}
    path = os.pathsep.join((str(CONSENT.parent), os.environ["PATH"]))
    here = {**without, "COLUMNS": "50", "PATH": path}
    cold = subprocess.run(
        words, capture_output=True, text=True, check=False, env=here, stdin=subprocess.DEVNULL
    )
    done = warm.run(words, here, given="")
    assert (done.returncode, done.stdout, done.stderr) == (code, cold.stdout, cold.stderr)


def test_each_of_those_that_begin_at_once_has_its_own_exit_code() -> None:
    without = {name: text for name, text in os.environ.items() if not name.endswith("_URL")}
    wrong: list[list[str | Path]] = [[*WORDS], [CONSENT, "partition", "p-1", "p-2"]]
    with ThreadPoolExecutor() as threads:
        done = threads.map(lambda words: warm.run(words, without), wrong * 20)
    assert {one.returncode for one in done} == {2}


def test_a_container_finds_it_in_its_own_environment(
    silent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has less than ours: what we are started with, for people or for CI, is not there."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    given = {"PATH": str(CONSENT.parent), "PYTHONPATH": str(warm.ROOT)}
    url = {"EVENT_STORE_URL": silent["EVENT_STORE_URL"]}
    process = warm.Popen(["python", *WORDS[1:]], env={**given, **url})
    is_forked = is_warm(process)
    imported_in = Path(f"/proc/{process.pid}/environ").read_text()
    process.kill()
    process.wait()
    assert is_forked
    assert "GITHUB_ACTIONS" not in imported_in


def test_it_is_our_child_with_a_session_and_an_end_of_its_own(silent: dict[str, str]) -> None:
    process = begin(silent, start_new_session=True)
    assert is_warm(process)
    assert os.getsid(process.pid) == process.pid
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("read_by_imports", ["PYTHONUTF8", "LC_ALL", "OTEL_SERVICE_NAME"])
def test_what_imports_would_see_otherwise_is_started_cold(
    silent: dict[str, str], read_by_imports: str
) -> None:
    process = begin({**silent, read_by_imports: "0"})
    assert not is_warm(process)
    process.kill()
    process.communicate()
