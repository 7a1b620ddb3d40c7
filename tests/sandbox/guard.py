"""Ends what lives in a sandbox's directory; as a process, it does so when the sandbox's owner dies.

A process belongs to the sandbox if its working directory lies in it. That finds the servers'
children too, whatever sessions they made for themselves, and never a stranger with a reused id.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

SECONDS_FOR_POSTGRES = 5.0
SECONDS_BETWEEN_LOOKS = 0.3


def end_everything_in(directory: Path) -> None:
    """End the processes in the directory at once, then remove it."""
    deadline = time.monotonic() + SECONDS_FOR_POSTGRES
    while processes := _living_in(directory):
        for process in processes:
            # PostgreSQL gives its shared memory back, unless it is killed without notice.
            patient = process.info["name"] == "postgres" and time.monotonic() < deadline
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT if patient else signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(directory, ignore_errors=True)


def _living_in(directory: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cwd", "name"])
        if (cwd := process.info["cwd"]) and Path(cwd).is_relative_to(directory)
    ]


def watch(directory: Path, owner: int) -> None:
    """Wait until this process is no longer the owner's child, which is when the owner died.

    A pipe from the owner would not do: any process it forked would hold the pipe open.
    """
    while os.getppid() == owner:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    end_everything_in(directory)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), int(sys.argv[2]))
