"""Standard streams that hold nobody up: closed, broken or full, they cost lines and never work.

A pipe that nobody reads blocks whoever writes to it, and one whose reader is gone fails. So lines
are taken at once and written by a thread of their own; what does not fit is dropped, and counted.
"""

import atexit
import io
import os
import select
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MOST_WAITING: Final = 4 * 1024 * 1024
"""Bytes kept for a reader that is slow; later lines are dropped."""
LAST_WORDS_S: Final = 1.0
"""How long a process that ends waits for its lines to be written."""
STANDARD_STREAMS: Final = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""How each is opened, in the order of their descriptors."""


class StandardError(io.TextIOBase):
    """A text stream whose `write` returns at once and never fails."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._changed = Condition()
        self.on_lost: Callable[[int], None] | None = None
        """Hears, in another thread, how many lines were lost, once all others have arrived."""
        self.dropped = 0
        """How many lines were lost so far."""

    def start(self) -> None:
        """Begin to write."""
        Thread(target=self._write_on, name="stderr", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override] # read, never set
        """How text becomes bytes."""
        return self._encoding

    def fileno(self) -> int:
        """Return the descriptor that is written to."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Say that it can always be written to."""
        return True

    def write(self, text: str) -> int:
        """Take a text, or drop it where too much waits."""
        data = text.encode(self._encoding, "backslashreplace")
        with self._changed:
            if self._size + len(data) > MOST_WAITING:
                self._drop(data)
            elif data:
                self._waiting.append(data)
                self._size += len(data)
                self._changed.notify_all()
        return len(text)

    def drain(self, within: float = LAST_WORDS_S) -> None:
        """Return when all is written, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._size == 0, within)

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data = self._next()
            rest = self._put(data)
            with self._changed:
                self._drop(rest)
                self._size -= len(data)
                lost = 0 if rest or self._size else self._lost
                self._lost -= lost
                self._changed.notify_all()
            if lost and self.on_lost:
                self.on_lost(lost)

    def _next(self) -> bytes:
        """Take as many lines as a pipe keeps together, where others write to it too."""
        taken = self._waiting.popleft()
        while self._waiting and len(taken) + len(self._waiting[0]) <= select.PIPE_BUF:
            taken += self._waiting.popleft()
        return taken

    def _put(self, data: bytes) -> bytes:
        """Write as much as there is somebody for; return the rest."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # somebody who shares it wants it so
                select.select([], [self._descriptor], [])
            except OSError:
                break
        return data

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self._lost += lines
        self.dropped += lines


class _Output(io.FileIO):
    """Standard output, which goes nowhere once its reader, as `head`, has had enough."""

    gone = False

    def write(self, data: "ReadableBuffer") -> int:
        """Write what somebody reads."""
        try:
            return super().write(data)
        except BrokenPipeError:
            self.gone = True
            return memoryview(data).nbytes


def output_is_read() -> bool:
    """Whether somebody reads the standard output yet."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return not (isinstance(raw, _Output) and raw.gone)


def guard_standard_streams() -> StandardError:
    """Make the standard streams hold nobody up, if they do, and return that of errors.

    Where a process begins with closed streams their places are taken first: what is opened later
    must not land there, since libuv aborts where such a descriptor is closed.
    """
    for name, mode in STANDARD_STREAMS.items():
        if getattr(sys, name) is None:
            kept = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - to the end
            setattr(sys, name, kept)
    while (place := os.open(os.devnull, os.O_RDWR)) < len(STANDARD_STREAMS):
        pass
    os.close(place)
    if isinstance(sys.stderr, StandardError):
        return sys.stderr
    stream = StandardError(sys.stderr.fileno(), sys.stderr.encoding)
    stream.start()
    atexit.register(stream.drain)
    sys.stderr = stream
    _guard_output()
    return stream


def _guard_output() -> None:
    """Have what nobody reads end no program and change no exit code."""
    before = sys.stdout
    if isinstance(before, io.TextIOWrapper):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(before.fileno(), "w", closefd=False)),
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=before.line_buffering,
            write_through=before.write_through,
        )


def last_words() -> None:
    """Have what was said so far written, before a process ends without tidying up."""
    if isinstance(sys.stderr, StandardError):
        sys.stderr.drain()
