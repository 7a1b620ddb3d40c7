"""Lists every message of the contract: who sends it, under which properties, and an example."""

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import getdoc
from typing import Any, Final, Literal, Union, get_args

from pydantic import AwareDatetime, BaseModel, create_model

from shared.contract.examples import EXAMPLES
from shared.messages.cloud_event import CONTENT_TYPE, CloudEvent
from shared.messages.commands import COMMANDS
from shared.messages.events import EVENTS
from shared.messages.queries import ANSWERS, EventPage, QueryFailed
from shared.messages.replies import Outcome

Json = dict[str, Any]
Direction = Literal["received", "sent"]

JSON: Final = "application/json"
UUID_TEXT: Final = {"type": "string", "format": "uuid"}
TEXT: Final = {"type": "string"}
ECHOED: Final = {"description": "That of the request, else its message_id.", **TEXT}
REPLY_TO: Final = {"description": "Where the answer goes; without it nobody is told.", **TEXT}
TRACE: Final = {
    "type": "object",
    "properties": {
        "traceparent": {"description": "W3C trace context.", **TEXT},
        "tracestate": {"description": "W3C trace context.", **TEXT},
    },
}


@dataclass(frozen=True)
class Message:
    """One message, as seen from Consent."""

    name: str
    direction: Direction
    model: type[BaseModel]
    properties: Json
    """JSON Schema of its AMQP properties."""
    headers: Json | None = None
    content_type: str = JSON

    @property
    def summary(self) -> str:
        """The first line of what its model says of itself."""
        return (self.model.__doc__ or "").strip().splitlines()[0]

    @property
    def example(self) -> Json:
        """An example of its body; raises LookupError where nobody wrote one."""
        if self.name not in EXAMPLES:
            raise LookupError(f"{self.name} needs an example in shared/contract/examples.py")
        return EXAMPLES[self.name]


def _properties(required: tuple[str, ...], **properties: object) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


def commands() -> Iterator[Message]:
    """What anybody entitled sends to change something."""
    for name, model in COMMANDS.items():
        properties = _properties(
            ("type", "message_id"),
            type={"const": name},
            message_id={"description": "The command id, an idempotency key.", **UUID_TEXT},
            content_type={"const": JSON},
            reply_to=REPLY_TO,
            correlation_id=TEXT,
            user_id={"description": "Verified by RabbitMQ; kept as `issuedby`.", **TEXT},
        )
        yield Message(name, "received", model, properties, TRACE)


def queries() -> Iterator[Message]:
    """What anybody entitled asks."""
    for model in ANSWERS:
        properties = _properties(
            ("reply_to",), content_type={"const": JSON}, reply_to=REPLY_TO, correlation_id=TEXT
        )
        yield Message(model.type, "received", model, properties)


def outcomes() -> Iterator[Message]:
    """How commands are answered."""
    for model in get_args(Outcome):
        yield Message(model.type, "sent", model, _reply_properties(model.type))


def answers() -> Iterator[Message]:
    """How queries are answered."""
    for query, model in ANSWERS.items():
        name = answer_name(query.type)
        yield Message(name, "sent", _closer(model), _reply_properties(name))
    failed = _properties(
        ("type", "content_type"),
        type={"enum": [answer_name(query.type) for query in ANSWERS]},
        content_type={"const": JSON},
        correlation_id=ECHOED,
    )
    yield Message("QueryFailed", "sent", QueryFailed, failed)


def answer_name(query_type: str) -> str:
    """Name the answer to a query, as its AMQP `type` does."""
    return f"{query_type}Answer"


def events() -> Iterator[Message]:
    """What subscribers receive."""
    for name in EVENTS:
        properties = _properties(
            ("type", "message_id", "content_type", "correlation_id", "delivery_mode"),
            type={"const": name},
            message_id={"description": "The event's id.", **UUID_TEXT},
            content_type={"const": CONTENT_TYPE},
            correlation_id=TEXT,
            delivery_mode={"const": 2},
        )
        yield Message(name, "sent", _cloud_event(name), properties, TRACE, CONTENT_TYPE)


def all_messages() -> list[Message]:
    """Every message of the contract."""
    return [*commands(), *outcomes(), *events(), *queries(), *answers()]


def _reply_properties(name: str) -> Json:
    return _properties(
        ("type", "content_type"),
        type={"const": name},
        content_type={"const": JSON},
        correlation_id=ECHOED,
    )


def _cloud_event(name: str) -> type[BaseModel]:
    """Say of a CloudEvent what its type says more: the fields of its data."""
    event = EVENTS[name]
    data = create_model(f"{name}Data", __base__=event, __doc__=event.__doc__)
    more: Json = {"type": (Literal[name], ...), "time": (AwareDatetime, ...), "data": (data, ...)}
    text = f"{getdoc(event)}\n\n{_plain(CloudEvent.__doc__)}"
    return create_model(name, __base__=CloudEvent, __doc__=text, **more)


def _closer(model: type[BaseModel]) -> type[BaseModel]:
    """Say of a page of events which events: the services hand them through unread."""
    if model is not EventPage:
        return model
    every: Any = Union[tuple(_cloud_event(name) for name in EVENTS)]  # noqa: UP007 - made as it runs
    more: Json = {"events": (list[every], ...)}
    return create_model("EventPage", __base__=EventPage, __doc__=EventPage.__doc__, **more)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())
