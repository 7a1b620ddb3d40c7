"""Starts the services' programs as forks of a process that has imported them already.

Imports are most of what a short program computes, and the tests start a thousand of them. A fork
has a process id, streams, an environment and an exit code of its own, and is the test's own child,
like any other process. `CONSENT_COLD=1` starts every program from nothing.
"""

import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Final

PROGRAMS: Final = ("command_service", "projection_service")
READ_BY_IMPORTS: Final = (
    "PYTHON", "LC_", "LANG", "TZ", "OTEL_", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH", "_TYPER",
)  # fmt: skip
"""So begin the variables that are looked at before a program runs, or while it is imported."""
STREAMS: Final = (9, 12, 14)
"""Where `_execute_child` is given the child's ends, after its first argument."""
EVERY_STREAM: Final = slice(9, 15)
SESSION: Final = 20
PR_SET_CHILD_SUBREAPER: Final = 36


class Popen(subprocess.Popen[Any]):
    """Starts a service's program warm, and any other as ever."""

    def _execute_child(self, args: Any, *others: Any) -> None:  # noqa: ANN401 - as it is there
        folder, environment = others[4:6]
        if folder or environment is None or not _can_be_warm(args, environment):
            super()._execute_child(args, *others)  # type: ignore[misc] # the stubs lack it
            return
        asked = {
            "words": args[2:],
            "folder": str(Path.cwd()),
            "environment": environment,
            "session": others[SESSION],
        }
        streams = [others[at] for at in STREAMS]
        given = [at if stream == -1 else stream for at, stream in enumerate(streams)]
        self.pid = _warm_process(args[2]).fork(asked, given)
        self._child_created = True
        self._close_pipe_fds(*others[EVERY_STREAM])  # type: ignore[attr-defined] # the same


def _can_be_warm(words: list[str], environment: Mapping[str, str]) -> bool:
    """Say whether imports under the tests' own environment are what it would have imported."""
    wanted = sys.platform == "linux" and not os.environ.get("CONSENT_COLD")
    if not wanted or words[:2] != [sys.executable, "-m"]:
        return False
    return words[2] in PROGRAMS and _read_by_imports(environment) == _read_by_imports(os.environ)


def _read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in environment.items() if name.startswith(READ_BY_IMPORTS)}


class WarmProcess:
    """A process with a program's imports that forks when it is asked to, and ends when we end."""

    def __init__(self, program: str) -> None:
        self._socket, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-m", __name__, program, str(its_end.fileno())]
        self._process = subprocess.Popen(words, pass_fds=[its_end.fileno()])
        its_end.close()
        atexit.register(self._end)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._one_at_a_time = Lock()

    def fork(self, asked: Mapping[str, object], streams: list[int]) -> int:
        """Return the new process's id.

        It forks twice, and the one between ends: whoever it leaves behind becomes our own child.
        """
        with self._one_at_a_time:
            self._adopt(yes=True)
            try:
                socket.send_fds(self._socket, [json.dumps(asked).encode()], streams)
                return int(self._socket.recv(20))
            finally:
                self._adopt(yes=False)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()

    def _adopt(self, *, yes: bool) -> None:
        if self._libc.prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "can't adopt processes")


@cache
def _warm_process(program: str) -> WarmProcess:
    return WarmProcess(program)
