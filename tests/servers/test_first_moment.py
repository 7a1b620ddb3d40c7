"""Whoever is stopped while it still begins ends at once, as a container's first process too."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from tests.sandbox.servers import HOST
from tests.servers.test_sandbox import eventually
from tests.support.deployment import Deployment

NAMESPACE: Final = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
CAUGHT: Final = "SigCgt:"


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@contextmanager
def first_process(
    deployment: Deployment, words: Sequence[str], log: Path
) -> Iterator[tuple["subprocess.Popen[bytes]", psutil.Process]]:
    """Start a program as the first process of a namespace, which the kernel spares signals."""
    if not may_unshare():
        pytest.skip("needs the right to make a namespace of processes")
    with log.open("wb") as stream:
        outside = subprocess.Popen(
            [*NAMESPACE, sys.executable, *words], env=deployment.environment(), stderr=stream
        )
    try:
        eventually(lambda: bool(psutil.Process(outside.pid).children()))
        yield outside, psutil.Process(outside.pid).children()[0]
    finally:
        outside.kill()
        outside.wait(10)


def catches_sigterm(process: psutil.Process) -> bool:
    """Whether a handler stands, by the kernel's own account."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    (mask,) = (line.removeprefix(CAUGHT) for line in lines if line.startswith(CAUGHT))
    return bool(int(mask, 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize(
    "words",
    [
        ["command_service", "run"],
        ["projection_service", "run"],
        ["projection_service", "run", "--answers-only"],
    ],
    ids=" ".join,
)
def test_a_worker_that_is_stopped_before_it_has_begun_is_drained(
    deployment: Deployment, tmp_path: Path, words: list[str]
) -> None:
    log = tmp_path / "log"
    with first_process(deployment, ["-m", *words], log) as (outside, inside):
        eventually(lambda: catches_sigterm(inside))
        inside.send_signal(signal.SIGTERM)
        assert outside.wait(30) == 0
    assert "worker.started" not in log.read_text()


def test_a_one_time_command_that_is_stopped_ends_by_the_signal(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Though the kernel spares it the default, and its database keeps it waiting."""
    words = ["-m", "command_service", "migrate"]
    with first_process(deployment, words, tmp_path / "log") as (outside, inside):
        eventually(lambda: catches_sigterm(inside))
        inside.send_signal(signal.SIGTERM)
        assert outside.wait(30) == 128 + signal.SIGTERM


def test_beside_others_it_ends_as_by_the_signal_itself(deployment: Deployment) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "command_service", "topology"],
        env=deployment.environment(RABBITMQ_URL=f"amqp://{HOST}:1/"),
        stderr=subprocess.DEVNULL,
    )
    inside = psutil.Process(process.pid)
    eventually(lambda: catches_sigterm(inside))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "command_service"],
        ["-m", "projection_service"],
        ["-c", "from shared.cli.consent import main; main()"],
    ],
)
def test_every_program_tells_its_version(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *words, "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("consent ")
