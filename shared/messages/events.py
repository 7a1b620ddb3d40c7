"""The facts that commands cause; each names one record type."""

from typing import ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

from shared.messages.timestamp import Moment
from shared.messages.upcasting import Data, UpcastError, upcast
from shared.values.vocabulary import Entity, Grantee, RecordedId, RecordType

Fact = Literal["asked", "granted", "revoked", "expired", "denied", "withdrawn"]


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    fact: ClassVar[Fact]
    newest_schema: ClassVar[int] = 1
    """The newest version that is written; older ones that aren't written any longer are read
    through `shared.messages.upcasting`."""
    oldest_schema: ClassVar[int] = 1
    """The oldest version that is read as it is."""
    patient_id: RecordedId

    @property
    def schema_version(self) -> int:
        """The version that this event is written in."""
        return self.newest_schema

    def to_json(self) -> str:
        """Write it down, without the fields that it does not have."""
        return self.model_dump_json(exclude_none=True)


class ConsentAsked(_Event):
    """Somebody asked for consent to one record type."""

    fact: ClassVar[Fact] = "asked"
    by_entity: Entity
    by_id: RecordedId
    target: RecordType
    expires_at: Moment | None = None
    """The end that was asked for."""

    @property
    def grantee(self) -> Grantee:
        """Who asked."""
        return Grantee(self.by_entity, self.by_id)


class ConsentGranted(_Event):
    """The patient granted consent to one record type, or gave it a later end.

    Without an end it is written as ever; with one it is of another version, so that no reader of
    before takes it for a consent without end.
    """

    fact: ClassVar[Fact] = "granted"
    newest_schema: ClassVar[int] = 2
    to_entity: Entity
    to_id: RecordedId
    target: RecordType
    expires_at: Moment | None = None
    """When it ends by itself: the first moment without it."""

    @property
    def schema_version(self) -> int:
        """The version that this event is written in."""
        return self.oldest_schema if self.expires_at is None else self.newest_schema

    @property
    def grantee(self) -> Grantee:
        """Who was granted."""
        return Grantee(self.to_entity, self.to_id)


class ConsentRevoked(_Event):
    """The patient took back consent to one record type."""

    fact: ClassVar[Fact] = "revoked"
    from_entity: Entity
    from_id: RecordedId
    target: RecordType

    @property
    def grantee(self) -> Grantee:
        """From whom it was taken."""
        return Grantee(self.from_entity, self.from_id)


class ConsentExpired(_Event):
    """Consent to one record type came to its end, which still stood."""

    fact: ClassVar[Fact] = "expired"
    to_entity: Entity
    to_id: RecordedId
    target: RecordType
    expires_at: Moment
    """The end: it may lie before the event's own time, and is what counts."""

    @property
    def grantee(self) -> Grantee:
        """Whose consent it was."""
        return Grantee(self.to_entity, self.to_id)


class ConsentDenied(_Event):
    """The patient said no to a request for one record type."""

    fact: ClassVar[Fact] = "denied"
    to_entity: Entity
    to_id: RecordedId
    target: RecordType

    @property
    def grantee(self) -> Grantee:
        """Who had asked."""
        return Grantee(self.to_entity, self.to_id)


class RequestWithdrawn(_Event):
    """Who had asked for one record type no longer does."""

    fact: ClassVar[Fact] = "withdrawn"
    by_entity: Entity
    by_id: RecordedId
    target: RecordType

    @property
    def grantee(self) -> Grantee:
        """Who had asked."""
        return Grantee(self.by_entity, self.by_id)


ConsentEvent = (
    ConsentAsked
    | ConsentGranted
    | ConsentRevoked
    | ConsentExpired
    | ConsentDenied
    | RequestWithdrawn
)

EVENTS: Final[dict[str, type[ConsentEvent]]] = {
    model.__name__: model
    for model in (
        ConsentAsked,
        ConsentGranted,
        ConsentRevoked,
        ConsentExpired,
        ConsentDenied,
        RequestWithdrawn,
    )
}


class UnknownEventError(ValueError):
    """An event of a newer writer, or an old one that its upcaster fails on."""


def read_event(type_: str, schema_version: int, data: Data) -> ConsentEvent:
    """Read the `data` of a stored or received event, of this schema version or an older one.

    Raises UnknownEventError for a type or schema version from a newer writer,
    and pydantic.ValidationError for data that is not what the type promises.
    """
    model = EVENTS.get(type_)
    try:
        reached, data = upcast(type_, schema_version, data)
    except UpcastError as error:
        raise UnknownEventError(str(error)) from error
    if model is None or not model.oldest_schema <= reached <= model.newest_schema:
        raise UnknownEventError(f"{type_} of schema version {schema_version} is not known here")
    # What `model_validate` itself does takes a third as long again.
    event: ConsentEvent = model.__pydantic_validator__.validate_python(data)
    return event
