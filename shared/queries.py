"""The questions that anyone entitled may ask, and their answers."""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared import names
from shared.replies import Detail
from shared.vocabulary import Entity, Id, RecordType, Target

MOST_EVENTS: Final = 500


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: ClassVar[str]


class _PatientQuery(_Query):
    patient_id: Id
    min_version: Annotated[int, Field(ge=0)] = 0


class ListConsents(_PatientQuery):
    """Who may see, or asked to see, this patient's records?"""

    type: ClassVar = names.LIST_CONSENTS


class HasConsent(_PatientQuery):
    """May this one see these records of this patient?"""

    type: ClassVar = names.HAS_CONSENT

    entity_name: Entity
    entity_id: Id
    permission: Target = "all"


class ReadEvents(_Query):
    """What follows this position in the log of a partition?"""

    type: ClassVar = names.READ_EVENTS

    partition: Annotated[int, Field(ge=0)]
    after_position: Annotated[int, Field(ge=0, lt=2**63)] = 0
    limit: Annotated[int, Field(ge=1, le=MOST_EVENTS)] = MOST_EVENTS
    patient_id: Id | None = None


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
    """Answers ListConsents, sorted by entity and id."""

    status: Literal["ok"] = "ok"
    patient_id: str
    version: int
    consents: list[Entry]


class ConsentHeld(_Answer):
    """Answers HasConsent."""

    status: Literal["ok"] = "ok"
    has_consent: bool
    version: int


class EventPage(_Answer):
    """Answers ReadEvents: CloudEvents, and the last position of the partition."""

    status: Literal["ok"] = "ok"
    events: list[dict[str, Any]]
    head: int


class QueryFailed(_Answer):
    """A query that could not be answered."""

    status: Literal["error"] = "error"
    error: Literal["validation_error", "not_yet_projected"]
    message: str
    details: list[Detail] = []
    version: int | None = None


ANSWERS: Final[dict[type[_Query], type[_Answer]]] = {
    ListConsents: Consents,
    HasConsent: ConsentHeld,
    ReadEvents: EventPage,
}
"""Every query, and what answers it where nothing is wrong."""
