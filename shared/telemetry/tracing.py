"""Spans over batches, linked to what each message's sender was doing; off unless asked for.

OpenTelemetry is imported only where its standard settings ask for an exporter.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from shared.errors import SettingsError
from shared.messages import names

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"


class Message(Protocol):
    """What a span takes from a message: where it belongs, and its sender's W3C trace context."""

    @property
    def partition(self) -> int | None:
        """None where it belongs to no partition."""

    @property
    def traceparent(self) -> str | None:
        """Whatever the sender gave; it may be malformed."""

    @property
    def tracestate(self) -> str | None:
        """Likewise."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the path, named by OpenTelemetry's conventions for messaging."""

    operation: str
    operation_type: Literal["process", "send", "settle"] | None = None
    """None where it is the database's work and not the broker's."""
    destination: str = ""

    @property
    def name(self) -> str:
        """The span's name."""
        return f"{self.operation} {self.destination}".rstrip()


PROCESS: Final = Step("process", "process", names.COMMANDS)
APPEND: Final = Step("append")
SETTLE: Final = Step("settle", "settle", names.COMMANDS)
PUBLISH: Final = Step("publish", "send", names.EVENTS)
PROJECT: Final = Step("project", "process", names.EVENTS)


class Tracer(Protocol):
    """Makes spans."""

    def span(self, step: Step, messages: Sequence[Message]) -> AbstractContextManager[None]:
        """Make the span of a step around whatever is done within."""


class _Active:
    """What this process traces with."""

    tracer: Tracer | None = None


_NO_SPAN: Final = nullcontext()


def span(step: Step, messages: Sequence[Message] = ()) -> AbstractContextManager[None]:
    """Trace what is done within, as one span with links to these messages' senders."""
    tracer = _Active.tracer
    return tracer.span(step, messages) if tracer else _NO_SPAN


@contextmanager
def tracing(service: str, worker_id: str) -> Iterator[None]:
    """Trace within, where the environment asks for it; send what is left in the end.

    Raises SettingsError where it asks for what is not there.
    """
    if not _is_wanted():
        yield
        return
    with _exporting(service, worker_id) as tracer:
        _Active.tracer = tracer
        try:
            yield
        finally:
            _Active.tracer = None


def _exporting(service: str, worker_id: str) -> AbstractContextManager[Tracer]:
    try:
        from shared.telemetry.open_telemetry import exporting  # noqa: PLC0415 - it is an extra
    except ImportError:
        raise SettingsError(
            "tracing is asked for (OTEL_…), but OpenTelemetry is not installed: "
            "pip install 'consent[tracing]', or set OTEL_TRACES_EXPORTER=none"
        ) from None
    return exporting(service, worker_id)


def _is_wanted() -> bool:
    """Read OpenTelemetry's standard settings, as far as they are not the library's own matter."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    asked = exporter or any(map(os.environ.get, ENDPOINTS))
    if disabled or not asked or exporter == "none":
        return False
    if exporter not in {"", "otlp"}:
        raise SettingsError("OTEL_TRACES_EXPORTER is wrong: must be otlp or none")
    for name in PROTOCOLS:
        if os.environ.get(name, PROTOCOL) not in {"", PROTOCOL}:
            raise SettingsError(f"{name} is wrong: must be {PROTOCOL}")
    return True


def context_headers() -> dict[str, str]:
    """Write the trace context of the calling program, where that uses OpenTelemetry."""
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415 - it is an extra

        tracecontext.TraceContextTextMapPropagator().inject(headers)
    return headers
