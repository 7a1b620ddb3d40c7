"""Imports a program, forks for each request, and runs the program in the fork."""

import atexit
import gc
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import Any, ClassVar, Final

from rich.console import Console

IMPORTS: Final = {
    "command_service": ("command_service.cli", "shared.worker.http"),
    "projection_service": ("projection_service.cli", "shared.worker.http"),
    "shared.cli.consent": ("shared.cli.consent.program", "shared.cli.watch"),
}
MOST_BYTES: Final = 1 << 20
DIGITS: Final = 20


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; return what was asked for in the fork, and None at the end of all."""
    reading, writing = os.pipe()
    while True:
        request, streams, _, _ = socket.recv_fds(requests, MOST_BYTES, 3)
        if not request:
            return None
        if not (between := os.fork()):
            if os.fork():
                os._exit(0)
            asked: dict[str, Any] = json.loads(request)
            if asked["session"]:
                os.setsid()
            os.write(writing, str(os.getpid()).encode())
            take_over(streams, {requests.detach(), reading, writing})
            return asked
        os.waitpid(between, 0)
        requests.send(os.read(reading, DIGITS))
        for stream in streams:
            os.close(stream)


def take_over(streams: list[int], ours: set[int]) -> None:
    """Have the standard streams of a new process, and no other."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for descriptor in {*streams, *ours}:
        os.close(descriptor)


def become(asked: dict[str, Any]) -> None:
    """Run the program as `python -m` does, or as a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    words: list[str] = asked["words"]
    is_module = words[1:2] == ["-m"]
    sys.argv[1:] = words[3 if is_module else 1 :]
    try:
        if is_module:
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(shutil.which(words[0]) or words[0], run_name="__main__")
    except SystemExit as end:
        Ending.code = end.code
        raise
    Ending.code = 0


class Ending:
    """How a fork ends that has run its program."""

    code: ClassVar[object] = None

    @staticmethod
    def leave() -> None:
        """Clear nothing away that is shared with the warm process: that would copy it first."""
        if isinstance(Ending.code, int):
            gc.collect()  # what is dropped may have something to say
            with suppress(AttributeError, OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(Ending.code)


def forget_terminals() -> None:
    """Have modules imported again that look, as they are imported, at what they are shown on."""
    for name, module in list(sys.modules.items()):
        if any(isinstance(one, Console) for one in vars(module).values()):
            package, _, module_name = name.rpartition(".")
            delattr(sys.modules[package], module_name)
            del sys.modules[name]


if __name__ == "__main__":
    atexit.register(Ending.leave)  # first, and so called last
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, and their programs
    for module in ("encodings.idna", *IMPORTS[sys.argv[1]]):
        import_module(module)
    forget_terminals()
    gc.collect()
    gc.freeze()
    if asked := serve(socket.socket(fileno=int(sys.argv[2]))):
        become(asked)
