"""The questions that anyone entitled may ask, and their answers."""

from typing import Annotated, Any, ClassVar, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shared.messages import names
from shared.messages.replies import Detail
from shared.messages.timestamp import Moment
from shared.values.vocabulary import Entity, RecordedId, RecordType, Target

MOST_EVENTS: Final = 500
MOST_GRANTEES: Final = 500
MOST_SPANS: Final = 500


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: ClassVar[str]


class _PatientQuery(_Query):
    patient_id: RecordedId
    min_version: Annotated[int, Field(ge=0)] = 0


class GranteePlace(BaseModel):
    """Where a page of a list ends: the `next` of one page is the `after` of the following."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    entity_name: Entity
    entity_id: RecordedId


class ListConsents(_PatientQuery):
    """Who may see, or asked to see, this patient's records?"""

    type: ClassVar = names.LIST_CONSENTS

    limit: Annotated[int, Field(ge=1, le=MOST_GRANTEES)] = MOST_GRANTEES
    after: GranteePlace | None = None


class HasConsent(_PatientQuery):
    """May this one see these records of this patient?"""

    type: ClassVar = names.HAS_CONSENT

    entity_name: Entity
    entity_id: RecordedId
    permission: Target = "all"
    at: Moment | None = None
    """Asks about that moment: in force is what was granted then or before and not revoked by then;
    a moment to come is asked about as things stand."""


class Place(BaseModel):
    """Where a page of a history ends: the `next` of one page is the `after` of the following."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    entity_name: Entity
    entity_id: RecordedId
    record_type: RecordType
    kind: Literal["period", "request"]
    version: Annotated[int, Field(ge=1, lt=2**63)]


class ConsentHistory(_PatientQuery):
    """When was which consent in force, by whose doing, and who asked for it?"""

    type: ClassVar = names.CONSENT_HISTORY

    limit: Annotated[int, Field(ge=1, le=MOST_SPANS)] = MOST_SPANS
    after: Place | None = None


class ReadEvents(_Query):
    """What follows this position in the log of a partition?"""

    type: ClassVar = names.READ_EVENTS

    partition: Annotated[int, Field(ge=0)]
    after_position: Annotated[int, Field(ge=0, lt=2**63)] = 0
    limit: Annotated[int, Field(ge=1, le=MOST_EVENTS)] = MOST_EVENTS
    patient_id: RecordedId | None = None


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    def to_json(self) -> bytes:
        """Encode it without what it does not have."""
        return self.model_dump_json(exclude_none=True).encode()


class Entry(_Answer):
    """What one grantee may see, and what it has asked to see."""

    entity_name: Entity
    entity_id: str
    permissions: list[RecordType]
    requested: list[RecordType]


class Consents(_Answer):
    """Answers ListConsents: a page, sorted by entity and id."""

    status: Literal["ok"] = "ok"
    patient_id: str
    version: int
    consents: list[Entry]
    next: GranteePlace | None = None
    """Given where there is more: ask again with this as `after`."""


class ConsentHeld(_Answer):
    """Answers HasConsent."""

    status: Literal["ok"] = "ok"
    has_consent: bool
    version: int


class Change(_Answer):
    """When something changed, and through what."""

    at: Moment
    version: int
    """The patient's; it orders what has the same time."""
    command_id: UUID
    issued_by: str | None = None


class Period(_Answer):
    """A consent in force: from the grant on, up to and without the moment of the revoke."""

    entity_name: Entity
    entity_id: str
    record_type: RecordType
    granted: Change
    revoked: Change | None = None


class RequestMade(_Answer):
    """Somebody asked, perhaps not for the first time; a grant answered it, or it is pending."""

    entity_name: Entity
    entity_id: str
    record_type: RecordType
    asked: Change
    answered: Change | None = None


class History(_Answer):
    """Answers ConsentHistory: a page, sorted by entity, id, record type, and version."""

    status: Literal["ok"] = "ok"
    patient_id: str
    version: int
    periods: list[Period]
    requests: list[RequestMade]
    next: Place | None = None
    """Given where there is more: ask again with this as `after`."""
    complete: bool = True
    """False where some of the past was purged, or is not known before a rebuild."""
    known_since: Moment | None = None
    """What ended before was purged."""


class GenerationBegan(BaseModel):
    """From behind a position on, the events of a partition are of this generation."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    generation: int
    after_position: int


class EventPage(_Answer):
    """Answers ReadEvents: CloudEvents, and the last position of the partition."""

    status: Literal["ok"] = "ok"
    events: list[dict[str, Any]]
    head: int
    log: UUID | None = None
    """Which log this is; it stays the same when it is restored."""
    generations: list[GenerationBegan] | None = None
    """Given where there is more than the first: in their order, behind which position each one of
    the partition began."""


class QueryFailed(_Answer):
    """A query that could not be answered."""

    status: Literal["error"] = "error"
    error: Literal["validation_error", "not_yet_projected", "log_set_back"]
    message: str
    details: list[Detail] = []
    version: int | None = None


ANSWERS: Final[dict[type[_Query], type[_Answer]]] = {
    ListConsents: Consents,
    HasConsent: ConsentHeld,
    ConsentHistory: History,
    ReadEvents: EventPage,
}
"""Every query, and what answers it where nothing is wrong."""
