"""An event as the log keeps it, and as it is published."""

from datetime import datetime
from json.encoder import encode_basestring as _text
from typing import Final, NamedTuple
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from shared.messages import names
from shared.messages.cloud_event import CONTENT_TYPE, SOURCE
from shared.messages.events import ConsentEvent, UnknownEventError, read_event
from shared.messages.timestamp import timestamp
from shared.messages.upcasting import UPCASTERS, Data, UpcastError, upcast
from shared.rabbitmq.connection import Properties
from shared.rabbitmq.publishing import PERSISTENT, Outgoing

_TRACE_HEADERS: Final = ("traceparent", "tracestate")


class RecordedEvent(NamedTuple):
    """One row of the log."""

    partition: int
    position: int
    stream_id: str
    stream_version: int
    event_id: UUID
    type: str
    schema_version: int
    data: str
    """JSON."""
    recorded_at: datetime
    correlation_id: str
    causation_id: UUID
    issued_by: str | None
    traceparent: str | None
    tracestate: str | None
    generation: int | None = None
    """Of the log; None for the first."""

    def to_json(self) -> bytes:
        """Write it as it travels, with the attributes of a CloudEvent in its order.

        Its data are up to date, or as they are where they can't be read.
        What it says was validated before it was recorded, and is again by whoever reads it.
        """
        schema_version, data = self._newest_json()
        generation = "" if self.generation is None else f'"generation":{self.generation},'
        return (
            f'{{"specversion":"1.0","id":"{self.event_id}","source":"{SOURCE}",'
            f'"type":{_text(self.type)},"subject":{_text(self.stream_id)},'
            f'"time":"{timestamp(self.recorded_at)}","datacontenttype":"application/json",'
            f'"schemaversion":{schema_version},"partition":{self.partition},'
            f'"position":{self.position},"streamversion":{self.stream_version},{generation}'
            f'"correlationid":{_text(self.correlation_id)},"causationid":"{self.causation_id}",'
            f"{_if_any('issuedby', self.issued_by)}"
            f"{_if_any('traceparent', self.traceparent)}{_if_any('tracestate', self.tracestate)}"
            f'"data":{data}}}'
        ).encode()

    def _newest_json(self) -> tuple[int, str]:
        if (self.type, self.schema_version) not in UPCASTERS:
            return self.schema_version, self.data
        schema_version, data = self._newest()
        return schema_version, to_json(data).decode()

    def _newest(self) -> tuple[int, Data]:
        data = from_json(self.data)
        try:
            return upcast(self.type, self.schema_version, data)
        except UpcastError:
            return self.schema_version, data

    def message(self) -> Outgoing:
        """Make the message that subscribers receive."""
        trace = {name: value for name in _TRACE_HEADERS if (value := getattr(self, name))}
        return Outgoing(
            exchange=names.EVENTS,
            routing_key=self._routing_key(),
            body=self.to_json(),
            properties=Properties(
                content_type=CONTENT_TYPE,
                delivery_mode=PERSISTENT,
                message_id=str(self.event_id),
                message_type=self.type,
                correlation_id=self.correlation_id,
                headers=dict(trace) or None,
            ),
        )

    def _routing_key(self) -> str:
        """Say where it goes; one that can't be read is published too, or all later would wait."""
        schema_version, data = self._newest()
        try:
            event = read_event(self.type, schema_version, data)
        except (UnknownEventError, ValidationError):
            return names.unknown_event_key(self.type, data, self.partition)
        return names.event_key(event, self.partition)


class FreshEvent(RecordedEvent):
    """A row that was appended just now: what it says needn't be read again to be published."""

    event: ConsentEvent

    def _routing_key(self) -> str:
        return names.event_key(self.event, self.partition)


def _if_any(attribute: str, value: str | None) -> str:
    return "" if value is None else f'"{attribute}":{_text(value)},'
