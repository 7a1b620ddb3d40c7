"""How the rules say no. Pure."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from shared.messages.replies import Detail, RejectionCode
from shared.messages.timestamp import timestamp
from shared.values.vocabulary import Grantee, RecordType, Target


class Rejected(Exception):
    """The rules say no.

    Rejected
    ├── ConsentAlreadyGranted   a grant of these terms would add nothing
    ├── ConsentNotGranted       nothing is there to revoke
    ├── ConsentNotRequested     nothing is there to deny or to withdraw
    ├── ExpiryNotInTheFuture    the end has come already
    ├── GrantTooLong            it would last longer than is allowed here
    └── TooManyRequests         too many others wait for the patient's answer
    """

    error: RejectionCode

    def __init__(self, message: str, *details: Detail) -> None:
        super().__init__(message)
        self.details = details


class ConsentAlreadyGranted(Rejected):
    """The grantee already has all that was asked for or granted, for as long."""

    error: RejectionCode = "consent_already_granted"

    def __init__(
        self, grantee: Grantee, target: Target, standing: Mapping[RecordType, datetime]
    ) -> None:
        super().__init__(
            f"{grantee} already has consent to {_named(target)}",
            *(
                Detail(field="expires_at", message=f"{named} is granted until {timestamp(end)}")
                for named, end in standing.items()
            ),
        )


class ConsentNotGranted(Rejected):
    """The grantee has nothing of what was to be revoked."""

    error: RejectionCode = "consent_not_granted"

    def __init__(self, grantee: Grantee, target: Target) -> None:
        super().__init__(f"{grantee} has no consent to {_named(target)}")


class ConsentNotRequested(Rejected):
    """Nobody waits for an answer to this."""

    error: RejectionCode = "consent_not_requested"

    def __init__(self, grantee: Grantee, target: Target) -> None:
        super().__init__(f"{grantee} does not ask for consent to {_named(target)}")


class ExpiryNotInTheFuture(Rejected):
    """The consent would have ended before it began."""

    error: RejectionCode = "expiry_not_in_the_future"

    def __init__(self, end: datetime) -> None:
        super().__init__(
            "the end of the consent has come already",
            Detail(field="expires_at", message=f"must be in the future, not {timestamp(end)}"),
        )


class GrantTooLong(Rejected):
    """The consent would last longer than the deployment allows."""

    error: RejectionCode = "grant_too_long"

    def __init__(self, longest: timedelta) -> None:
        super().__init__(
            "the consent would last longer than is allowed here",
            Detail(field="expires_at", message=f"must be within {longest} from now"),
        )


class TooManyRequests(Rejected):
    """Another request would drown the patient in them."""

    error: RejectionCode = "too_many_requests"

    def __init__(self, most: int) -> None:
        super().__init__(
            f"{most} others wait for this patient's answer already: "
            "ask again when some of them have it"
        )


def _named(target: Target) -> str:
    return "all records" if target == "all" else target
