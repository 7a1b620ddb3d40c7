"""A private directory in which an unprivileged user runs servers that must not outlive us."""

import contextlib
import fcntl
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

from tests.sandbox import guard
from tests.sandbox.servers import HOST, ServerDidNotStart

# Below the ports that systems hand out to outgoing connections: while a server is stopped, a
# client that keeps dialling its port could otherwise be given that very port, and talk to itself.
PORTS = range(15_000, 32_000)
_given: set[int] = set()
_one_at_a_time = Lock()

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
ROOM_IN_MEMORY = 6 * 1024**3


@dataclass(frozen=True)
class Program:
    """A started server, in a session of its own: our Ctrl-C is not its Ctrl-C."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def end(self, how: signal.Signals, within: float) -> None:
        """Send the signal, and SIGKILL to the whole session after that many seconds."""
        self.process.send_signal(how)
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def wait_until(self, answers: Callable[[], bool], within: float) -> None:
        """Raises `ServerDidNotStart` when the program ends first or that many seconds pass."""
        deadline = time.monotonic() + within
        while not answers():
            if self.process.poll() is not None:
                raise ServerDidNotStart(self.account("ended"))
            if time.monotonic() > deadline:
                raise ServerDidNotStart(self.account(f"did not answer within {within:g} s"))
            time.sleep(0.05)

    def account(self, what: str) -> str:
        tail = self.log.read_text(errors="replace").splitlines()[-25:]
        return "\n".join([f"{self.name} {what}; its log ends with:", *tail])


class Home:
    """Has a guard, a process that clears it away should we die without doing so."""

    def __init__(self, *, durable: bool = True) -> None:
        folder = None if durable else _memory()
        self.path = Path(tempfile.mkdtemp(prefix="consent-", dir=folder)).resolve()
        self._account = _unprivileged_account()
        self._programs: list[Program] = []
        self._guard = subprocess.Popen(
            [sys.executable, "-P", guard.__file__, str(self.path), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._give_away(self.path)

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.write_text(text)
        self._give_away(path)
        return path

    def make_folder(self, name: str) -> Path:
        path = self.path / name
        path.mkdir()
        self._give_away(path)
        return path

    def run(self, *command: str | Path) -> None:
        """Run to the end; raises `ServerDidNotStart` with the output if it fails."""
        program = self.launch(Path(command[0]).name, *command)
        if program.process.wait() != 0:
            raise ServerDidNotStart(program.account("failed"))

    def launch(self, name: str, *command: str | Path, **environment: str) -> Program:
        """Start a program in this directory; what it prints goes to `<name>.log`."""
        log = self.path / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.path,
                env=self._environment() | environment,
                start_new_session=True,
                user=self._account and self._account.pw_uid,
                group=self._account and self._account.pw_gid,
                extra_groups=[] if self._account else None,
            )
        program = Program(name, process, log)
        self._programs.append(program)
        return program

    def clear(self) -> None:
        """End every program at once, wherever it stands, and remove the directory."""
        guard.end_everything_in(self.path)
        for program in self._programs:
            program.process.wait()
        self._guard.terminate()
        self._guard.wait()

    def _environment(self) -> dict[str, str]:
        """Nothing of ours, whose PG* and RABBITMQ_* variables would reach the servers."""
        return {
            "HOME": str(self.path),
            "PATH": os.pathsep.join([os.defpath, os.environ.get("PATH", "")]),
            "LC_ALL": "C",
        }

    def _give_away(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)


def _memory() -> Path | None:
    """Where files are in memory, if there is room: a disk's journal costs more than the work."""
    if not os.access(MEMORY, os.W_OK):
        return None
    return MEMORY if shutil.disk_usage(MEMORY).free > ROOM_IN_MEMORY else None


def _unprivileged_account() -> pwd.struct_passwd | None:
    """None unless we are root, as whom PostgreSQL refuses to run."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerDidNotStart("started by root, and there is no user postgres or nobody to run as")


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens, and which nobody else is given while we live.

    Whoever is given one listens there only later, and not while it is stopped, and processes that
    test side by side ask for a thousand.
    """
    found: list[int] = []
    with _one_at_a_time:
        for port in random.sample(PORTS, k=len(PORTS)):
            if port not in _given and _is_free(port) and _is_ours(port):
                _given.add(port)
                found.append(port)
            if len(found) == count:
                break
    return found


def _is_ours(port: int) -> bool:
    """Whether no other process has locked the byte that stands for it; now we have, to our end."""
    try:
        fcntl.lockf(_ports_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _ports_file() -> int:
    path = Path(tempfile.gettempdir()) / f"consent-ports-{os.geteuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
    return True
