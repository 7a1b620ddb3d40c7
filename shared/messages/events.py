"""The facts that commands cause; each names one record type."""

from typing import ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

from shared.messages.upcasting import Data, UpcastError, upcast
from shared.values.vocabulary import Entity, Grantee, RecordedId, RecordType

Fact = Literal["asked", "granted", "revoked"]


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    fact: ClassVar[Fact]
    schema_version: ClassVar[int] = 1
    """The version that is written; the older ones are read through `shared.messages.upcasting`."""
    patient_id: RecordedId


class ConsentAsked(_Event):
    """Somebody asked for consent to one record type."""

    fact: ClassVar[Fact] = "asked"
    by_entity: Entity
    by_id: RecordedId
    target: RecordType

    @property
    def grantee(self) -> Grantee:
        """Who asked."""
        return Grantee(self.by_entity, self.by_id)


class ConsentGranted(_Event):
    """The patient granted consent to one record type."""

    fact: ClassVar[Fact] = "granted"
    to_entity: Entity
    to_id: RecordedId
    target: RecordType

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


ConsentEvent = ConsentAsked | ConsentGranted | ConsentRevoked

EVENTS: Final[dict[str, type[ConsentEvent]]] = {
    model.__name__: model for model in (ConsentAsked, ConsentGranted, ConsentRevoked)
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
    if model is None or reached != model.schema_version:
        raise UnknownEventError(f"{type_} of schema version {schema_version} is not known here")
    return model.model_validate(data)
