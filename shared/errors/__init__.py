"""What can go wrong around the services, by what is to be done about it."""


class ConsentError(Exception):
    """An error of this software.

    ConsentError
    ├── SettingsError        the operator must mend a setting; exit code 2
    │   └── LogSetBack       the log does not have what was taken from it; an operator must decide
    ├── SchemaError          the operator must migrate; exit code 2
    ├── NotConnected         a server refuses us: TLS, login or address; an operator must mend it
    │   └── ServerLeft       another server has taken over from this one; an operator must decide
    ├── SurroundingsWrong    a database refuses whatever is written; wait for the operator
    ├── NotAllowed           the broker's user may not do that; ask for the permission
    ├── BrokerBlocked        the broker is short of memory or disk; wait until it has room again
    ├── TopologyMissing      a queue or exchange is not there (yet); wait for the operator
    ├── Fenced               another worker owns the partition now; let go of it
    ├── Conflict             somebody appended first; read again, decide again
    │   └── DecidedBefore    a command id has a receipt already: read it
    ├── NotNow               something is in the way; nothing was changed, try again; exit code 3
    │   └── RowLocked        somebody has locked a row that is to be changed; wait until it is free
    ├── Unsure               what was asked for was done or was not: look; exit code 3
    ├── NoAnswer             no reply came in time; ask again with the same command id
    │   ├── NotTaken         a queue refuses it at this moment: it is full, or has no leader
    │   └── Unroutable       there is no queue for it; an operator must run `topology`
    ├── NotHandled           a subscriber's handler failed, and the event can't be parked
    ├── Stale                what a mirror knows may be too old; ask HasConsent, or later
    └── QueryRefused         the query was answered with an error
    """


class SettingsError(ConsentError):
    """A setting is missing or wrong; the message is one line that names it and the remedy."""


class LogSetBack(SettingsError):
    """The log was restored to an older state, or is another one's: what was taken is not in it."""


class SchemaError(ConsentError):
    """The database or the broker is not prepared as this version needs it."""


class NotConnected(ConsentError, ConnectionError):
    """A server is there and refuses us; the message is one line that names setting and remedy.

    A worker waits all the same: what is refused may be mended on the other side.
    """


class ServerLeft(NotConnected):
    """The event store's server is one that another has taken over from, or its log was given up."""


class SurroundingsWrong(ConsentError):
    """A database refuses what any message would write; no message is to blame for it."""


class NotAllowed(ConsentError):
    """The broker's user lacks the permission for what was sent."""


class BrokerBlocked(ConsentError):
    """The broker has raised an alarm; until it is over it takes nothing from whoever publishes."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the broker is blocked ({reason}), it takes nothing from whoever publishes: "
            "make room there; what waits goes on by itself"
        )


class TopologyMissing(ConsentError):
    """A queue or exchange that the worker needs has not been declared."""

    def __init__(self, name: str, kind: str = "queue") -> None:
        super().__init__(f"the {kind} {name} is missing: run `python -m command_service topology`")


class Fenced(ConsentError):
    """Another worker has taken the partition; nothing was written."""


class Conflict(ConsentError):
    """A decision was made on facts that had changed; nothing was written."""


class DecidedBefore(Conflict):
    """A command id of the batch was decided before; nothing was written."""


class NotNow(ConsentError):
    """What was asked for can't be done at this moment; nothing was changed."""


class RowLocked(NotNow):
    """Somebody else holds a lock on a row that is to be changed; nothing was changed."""


class Unsure(ConsentError):
    """The answer was lost: what was asked for was done or was not. The message says how to tell."""


class NoAnswer(ConsentError):
    """No reply came in time. A command may be sent again under the same id, without harm."""


class NotTaken(NoAnswer):
    """The broker has refused a request for its queue, which may take the next one."""


class Unroutable(NoAnswer):
    """The broker has no queue for a request."""


class NotHandled(ConsentError):
    """A handler kept failing on an event, which could be parked nowhere; the cause says why."""


class Stale(ConsentError):
    """A mirror may not know what has happened since too long ago; the message says of what."""


class QueryRefused(ConsentError):
    """A query was answered with an error; `error` is its code in the contract."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def first_cause(error: BaseException) -> BaseException:
    """Return the first of a group of errors that fell over each other; another one as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
