"""Spans through OpenTelemetry, sent to a collector over OTLP/HTTP."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from shared.telemetry.tracing import Message, Step

MOST_LINKS: Final = 500
"""As many as the largest batch has messages; OTEL_SPAN_LINK_COUNT_LIMIT overrules it."""
FLUSH_S: Final = 2.0
"""A collector that is away keeps nobody from leaving."""

_KINDS: Final = {
    "process": SpanKind.CONSUMER,
    "send": SpanKind.PRODUCER,
    "settle": SpanKind.CLIENT,
    None: SpanKind.CLIENT,
}
_PROPAGATOR: Final = TraceContextTextMapPropagator()


@contextmanager
def exporting(service: str, worker_id: str) -> Iterator["BatchTracer"]:
    """Send spans in the background, by OpenTelemetry's standard settings, until the end."""
    ours = Resource.create({"service.name": service, "service.instance.id": worker_id})
    limits = None if os.environ.get("OTEL_SPAN_LINK_COUNT_LIMIT") else MOST_LINKS
    provider = TracerProvider(
        resource=ours.merge(OTELResourceDetector().detect()),
        span_limits=SpanLimits(max_links=limits),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield BatchTracer(provider.get_tracer("consent"))
    finally:
        flush = Thread(target=provider.shutdown, daemon=True)
        flush.start()
        flush.join(FLUSH_S)


class BatchTracer:
    """Makes one span for each batch."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def span(self, step: Step, messages: Sequence[Message]) -> Iterator[None]:
        """Make a span; a failure is told by its type alone, since its words may hold anything."""
        with self._tracer.start_as_current_span(
            step.name,
            kind=_KINDS[step.operation_type],
            attributes=_attributes(step, messages),
            links=_links(messages),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(Status(StatusCode.ERROR))
                raise


def _attributes(step: Step, messages: Sequence[Message]) -> dict[str, AttributeValue]:
    if step.operation_type is None:
        return {"db.system.name": "postgresql", "db.operation.name": step.operation}
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": step.operation,
        "messaging.operation.type": step.operation_type,
        "messaging.destination.name": step.destination,
        "messaging.batch.message_count": len(messages),
        "consent.partitions": sorted(
            {message.partition for message in messages if message.partition is not None}
        ),
    }


def _links(messages: Iterable[Message]) -> list[Link]:
    """Link each sender's span once; what is malformed names none."""
    carried = {
        (message.traceparent, message.tracestate): None
        for message in messages
        if message.traceparent
    }
    contexts = (_context(parent, state) for parent, state in carried)
    return [Link(context) for context in contexts if context.is_valid]


def _context(traceparent: str | None, tracestate: str | None) -> SpanContext:
    headers = {"traceparent": traceparent or "", "tracestate": tracestate or ""}
    return get_current_span(_PROPAGATOR.extract(headers)).get_span_context()
