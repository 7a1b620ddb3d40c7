"""Imports a program, forks for each request, and runs the program in the fork."""

import gc
import json
import os
import runpy
import signal
import socket
import sys
from importlib import import_module
from typing import Any, Final

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
    """Run the program as `python -m` does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    program, *sys.argv[1:] = asked["words"]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, and their programs
    import_module(f"{sys.argv[1]}.cli")
    import_module("shared.worker.http")
    gc.collect()
    gc.freeze()
    if asked := serve(socket.socket(fileno=int(sys.argv[2]))):
        become(asked)
