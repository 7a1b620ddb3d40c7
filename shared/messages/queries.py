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
MOST_PATIENTS: Final = 500
MOST_QUESTIONS: Final = 500
MOST_ACTORS: Final = 20


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
    """Asks about that moment: in force is what was granted then or before, not revoked by then, and
    not at its end; a moment to come is asked about as things stand."""


class Actor(BaseModel):
    """Somebody who may hold the consent that is asked about."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    entity_name: Entity
    entity_id: RecordedId


class Question(BaseModel):
    """May any of these see these records of this patient?"""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    patient_id: RecordedId
    actors: Annotated[list[Actor], Field(min_length=1, max_length=MOST_ACTORS)]
    """Whoever asks, under each name that a consent may stand under."""
    permission: Target = "all"
    at: Moment | None = None
    """As in HasConsent."""
    min_version: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Waits until this patient is projected to that version."""


class CheckConsents(_Query):
    """May these see these records, question by question?"""

    type: ClassVar = names.CHECK_CONSENTS

    questions: Annotated[list[Question], Field(min_length=1, max_length=MOST_QUESTIONS)]


class ListPatients(_Query):
    """Whose records may this one see?"""

    type: ClassVar = names.LIST_PATIENTS

    entity_name: Entity
    entity_id: RecordedId
    permission: Target | None = None
    """Lists only patients of whom this may be seen; without it, those of whom anything may be."""
    limit: Annotated[int, Field(ge=1, le=MOST_PATIENTS)] = MOST_PATIENTS
    after: RecordedId | None = None
    """The `next` of the page before."""


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
    until: dict[RecordType, Moment] | None = None
    """When each of the permissions ends that ends by itself."""
    requested_until: dict[RecordType, Moment] | None = None
    """The ends that are asked for, by the newest request of each record type."""


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
    valid_until: Moment | None = None
    """The first moment without this consent, where a yes ends by itself; it may be revoked before,
    or extended. Asked about a moment of the past: as it stood then."""


class Basis(_Answer):
    """The consent by which something is allowed: a disclosure names it."""

    record_type: RecordType
    entity_name: Entity
    entity_id: str
    event_id: UUID | None = None
    """Of the grant; not known of one that was projected before this was kept, until a rebuild."""
    command_id: UUID
    since: Moment
    until: Moment | None = None
    """When this consent ends by itself, as it was granted."""


class ConsentChecked(_Answer):
    """The answer to one question; a no is the same whatever its reason."""

    status: Literal["ok"] = "ok"
    has_consent: bool
    """Whether all that was asked about is granted, to one of the actors or another."""
    version: int
    granted: list[RecordType]
    missing: list[RecordType]
    basis: list[Basis]
    """By which consent each record type is granted: of several, the one that stands longest."""
    valid_until: Moment | None = None
    """The first moment without all this, where a yes ends by itself; as in HasConsent."""


class Change(_Answer):
    """When something changed, and through what."""

    at: Moment
    version: int
    """The patient's; it orders what has the same time."""
    command_id: UUID
    issued_by: str | None = None


class Ended(_Answer):
    """How and when a period ended."""

    cause: Literal["revoked", "expired", "extended"]
    """It expired at its end; where it was extended, another period follows at once."""
    at: Moment
    version: int | None = None
    """Of the event that recorded it. An end that has come counts before it is recorded: until then
    this and the following are left out."""
    command_id: UUID | None = None
    issued_by: str | None = None


class Period(_Answer):
    """A consent in force: from the grant on, up to and without the moment at which it ended."""

    entity_name: Entity
    entity_id: str
    record_type: RecordType
    granted: Change
    until: Moment | None = None
    """When it ends by itself, as it was granted."""
    ended: Ended | None = None


class Answered(Change):
    """How and when a request was answered, and through what."""

    how: Literal["granted", "denied", "withdrawn"]


class RequestMade(_Answer):
    """Somebody asked, perhaps not for the first time; it was answered, or it is pending."""

    entity_name: Entity
    entity_id: str
    record_type: RecordType
    asked: Change
    until: Moment | None = None
    """The end that was asked for."""
    answered: Answered | None = None


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
    disputed: Literal[True] | None = None
    """Given where the log lacks what was published of it, until its operator has decided."""


class QueryFailed(_Answer):
    """A query that could not be answered."""

    status: Literal["error"] = "error"
    error: Literal["validation_error", "not_yet_projected", "log_set_back"]
    message: str
    details: list[Detail] = []
    version: int | None = None


class ConsentsChecked(_Answer):
    """Answers CheckConsents: an answer to each question, in their order."""

    status: Literal["ok"] = "ok"
    answers: list[ConsentChecked | QueryFailed]
    """What is wrong with one question stands in its place, and the others are answered."""


class PatientSeen(_Answer):
    """A patient of whom something may be seen."""

    patient_id: str
    permissions: list[RecordType]
    until: dict[RecordType, Moment] | None = None
    """When each of the permissions ends that ends by itself."""


class Patients(_Answer):
    """Answers ListPatients: a page, sorted by the code points of the patients' ids."""

    status: Literal["ok"] = "ok"
    patients: list[PatientSeen]
    """May be fewer than `limit`, or none, where there is a `next` all the same."""
    next: str | None = None
    """Given where there may be more: ask again with this as `after`."""


ANSWERS: Final[dict[type[_Query], type[_Answer]]] = {
    ListConsents: Consents,
    HasConsent: ConsentHeld,
    CheckConsents: ConsentsChecked,
    ListPatients: Patients,
    ConsentHistory: History,
    ReadEvents: EventPage,
}
"""Every query, and what answers it where nothing is wrong."""
