"""An event as it travels: a CloudEvent 1.0 in structured JSON mode."""

from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.messages.events import ConsentEvent, read_event
from shared.values.vocabulary import Line, RecordedId

CONTENT_TYPE: Final = "application/cloudevents+json"
SOURCE: Final = "consent/command-service"

Count = Annotated[int, Field(ge=1, lt=2**63)]
"""A place in the log or in a patient's history: from 1, and no larger than a database keeps."""


class CloudEvent(BaseModel):
    """One recorded event, with its place in the log.

    `position` counts from 1 without holes within the partition, `streamversion` within the patient.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str = SOURCE
    type: Line
    subject: RecordedId
    time: str
    datacontenttype: str = "application/json"
    schemaversion: int
    partition: int
    position: Count
    streamversion: Count
    generation: Count | None = None
    """Of the log; it is there from the second one on, and grows whenever a log that was restored
    to an older state is taken as it is."""
    correlationid: str
    causationid: str
    issuedby: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    data: dict[str, Any]

    def to_json(self) -> bytes:
        """Encode it without the attributes that it does not have."""
        return self.model_dump_json(exclude_none=True).encode()

    def event(self) -> ConsentEvent:
        """Read the event itself.

        Raises UnknownEventError where a newer writer wrote it, pydantic.ValidationError
        where the data is not what its type promises.
        """
        return self._event

    @cached_property
    def _event(self) -> ConsentEvent:
        return read_event(self.type, self.schemaversion, self.data)
