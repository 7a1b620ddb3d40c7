"""The commands that other services send, under the names that their fields have in the contract.

Whoever asks or grants brings ids into the log: nothing may be hidden in them. Taking back, denying
and withdrawing only find what stands there, and must find what an older version let in, too.
"""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo
from pydantic_core import PydanticCustomError

from shared.messages.timestamp import OptionalEnd
from shared.values.vocabulary import Entity, Grantee, Id, RecordedId, Target

Verb = Literal["ask", "grant", "revoke", "deny", "withdraw"]


def _somebody_else(value: str, info: ValidationInfo) -> str:
    """Refuse the patient as the other party; the fields before this one are already read."""
    entity = next((v for k, v in info.data.items() if k.endswith("_entity")), None)
    if entity == "patient" and value == info.data.get("patient_id"):
        raise PydanticCustomError(
            "own_id", "must not be the patient's own id: consent is for somebody else"
        )
    return value


OtherId = Annotated[Id, AfterValidator(_somebody_else)]
RecordedOtherId = Annotated[RecordedId, AfterValidator(_somebody_else)]


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    verb: ClassVar[Verb]
    patient_id: Id


class AskConsent(_Command):
    """Somebody asks a patient for consent."""

    verb: ClassVar[Verb] = "ask"
    by_entity: Entity
    by_id: OtherId
    target: Target
    expires_at: OptionalEnd = None
    """The end that is asked for; none for a consent without one."""

    @property
    def grantee(self) -> Grantee:
        """Who asks."""
        return Grantee(self.by_entity, self.by_id)


class GrantConsent(_Command):
    """A patient grants consent to somebody."""

    verb: ClassVar[Verb] = "grant"
    to_entity: Entity
    to_id: OtherId
    target: Target
    expires_at: OptionalEnd = None
    """When the consent ends by itself."""

    @property
    def grantee(self) -> Grantee:
        """Who is granted."""
        return Grantee(self.to_entity, self.to_id)


class RevokeConsent(_Command):
    """A patient takes consent back from somebody."""

    verb: ClassVar[Verb] = "revoke"
    patient_id: RecordedId
    from_entity: Entity
    from_id: RecordedOtherId
    target: Target

    @property
    def grantee(self) -> Grantee:
        """From whom it is taken."""
        return Grantee(self.from_entity, self.from_id)


class DenyConsent(_Command):
    """A patient says no to what somebody asks for."""

    verb: ClassVar[Verb] = "deny"
    patient_id: RecordedId
    to_entity: Entity
    to_id: RecordedOtherId
    target: Target

    @property
    def grantee(self) -> Grantee:
        """Who asked."""
        return Grantee(self.to_entity, self.to_id)


class WithdrawRequest(_Command):
    """Somebody no longer asks."""

    verb: ClassVar[Verb] = "withdraw"
    patient_id: RecordedId
    by_entity: Entity
    by_id: RecordedOtherId
    target: Target

    @property
    def grantee(self) -> Grantee:
        """Who asked."""
        return Grantee(self.by_entity, self.by_id)


ConsentCommand = AskConsent | GrantConsent | RevokeConsent | DenyConsent | WithdrawRequest

COMMANDS: Final[dict[str, type[ConsentCommand]]] = {
    model.__name__: model
    for model in (AskConsent, GrantConsent, RevokeConsent, DenyConsent, WithdrawRequest)
}
