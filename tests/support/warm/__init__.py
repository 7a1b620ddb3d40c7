"""Starts our programs as forks of a process that has imported them already.

Imports are most of what a short program computes, and the tests start a thousand of them. A fork
has a process id, streams, an environment and an exit code of its own, and is the test's own child,
like any other process. `CONSENT_COLD=1` starts every program from nothing.
"""

import atexit
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Final

PROGRAMS: Final = ("command_service", "projection_service", "shared.cli.consent")
COMMANDS: Final = {"consent": "shared.cli.consent"}
"""What is installed beside the interpreter, and the program that it starts."""
ROOT: Final = Path(__file__).parents[3]
READ_BY_IMPORTS: Final = (
    "PYTHON", "LC_", "LANG", "OTEL_", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH", "_TYPER",
    "GITHUB_ACTIONS",
)  # fmt: skip
"""So begin the variables that are looked at before a program runs, or while it is imported."""
CHANGING: Final = (0, 1, 3, 4, 8)
"""Where `_execute_child`, after its first argument, is given what a fork can't have: another
program than its first word, a function to call, descriptors, a folder, a shell."""
ENVIRONMENT: Final = 5
STREAMS: Final = (9, 12, 14)
"""The child's ends."""
EVERY_STREAM: Final = slice(9, 15)
SESSION: Final = 20
PR_SET_CHILD_SUBREAPER: Final = 36


class Popen(subprocess.Popen[Any]):
    """Starts one of our programs warm, and any other as ever."""

    def _execute_child(self, args: Any, *others: Any) -> None:  # noqa: ANN401 - as it is there
        environment = os.environ if others[ENVIRONMENT] is None else others[ENVIRONMENT]
        words = [str(word) for word in args] if isinstance(args, list) else [str(args)]
        changed = any(others[at] for at in CHANGING)
        process = None if changed else _process_for(words, environment)
        if process is None:
            super()._execute_child(args, *others)  # type: ignore[misc] # the stubs lack it
            return
        asked = {
            "words": words,
            "folder": str(Path.cwd()),
            "environment": dict(environment),
            "session": others[SESSION],
        }
        streams = [others[at] for at in STREAMS]
        given = [at if stream == -1 else stream for at, stream in enumerate(streams)]
        self.pid = process.fork(asked, given)
        self._child_created = True
        self._close_pipe_fds(*others[EVERY_STREAM])  # type: ignore[attr-defined] # the same


def run(
    words: Sequence[object],
    environment: Mapping[str, str],
    *,
    given: str | None = None,
    within: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, warm where it can be, and return what it said."""
    pipe = subprocess.PIPE
    with Popen(
        [*map(str, words)], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            out, err = process.communicate(given, within)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _process_for(words: list[str], environment: Mapping[str, str]) -> "WarmProcess | None":
    """Give the one with the program's imports, if these read the tests' own environment or less.

    A container has less; who is given something else there is alone with it, and starts cold.
    """
    if sys.platform != "linux" or os.environ.get("CONSENT_COLD"):
        return None
    first = Path(shutil.which(words[0], path=environment.get("PATH")) or "")
    program = words[2] if words[1:2] == ["-m"] else COMMANDS.get(first.name)
    read = _read_by_imports(environment)
    is_warm = program in PROGRAMS and read.items() <= _read_by_imports(os.environ).items()
    if first.parent != Path(sys.executable).parent or not is_warm:
        return None
    return _warm_process(program, frozenset(read.items()))


def _read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out that our own checkout is on the path, which it is for us anyway."""
    found = {name: text for name, text in environment.items() if _is_read_by_imports(name)}
    if found.get("PYTHONPATH") == str(ROOT):
        del found["PYTHONPATH"]
    return found


def _is_read_by_imports(name: str) -> bool:
    return name.startswith(READ_BY_IMPORTS)


class WarmProcess:
    """A process with a program's imports that forks when it is asked to, and ends when we end."""

    _one_at_a_time: ClassVar = Lock()
    """Of all of them: who adopts is this whole process, and who stops too early loses a child."""

    def __init__(self, program: str, read: Mapping[str, str]) -> None:
        self._socket, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-m", __name__, program, str(its_end.fileno())]
        nowhere = subprocess.DEVNULL  # imports look whether they are shown on a terminal
        others = {name: os.environ[name] for name in os.environ if not _is_read_by_imports(name)}
        self._process = subprocess.Popen(
            words, pass_fds=[its_end.fileno()], stdout=nowhere, env={**others, **read}
        )
        its_end.close()
        atexit.register(self._end)
        self._libc = ctypes.CDLL(None, use_errno=True)

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
def _warm_process(program: str, read: frozenset[tuple[str, str]]) -> WarmProcess:
    return WarmProcess(program, dict(read))
