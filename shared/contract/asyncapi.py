"""Writes the AsyncAPI 3 document: channels, operations and messages, from models and topology."""

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any, Final

from shared.contract.catalogue import (
    Json,
    Message,
    all_messages,
    answer_name,
    answers,
    commands,
    events,
    outcomes,
    queries,
)
from shared.contract.schemas import DEFINITIONS, every_schema, schema_of
from shared.messages import names
from shared.messages.commands import COMMANDS
from shared.messages.events import EVENTS
from shared.rabbitmq.topology import EXCHANGES, queues
from shared.values.oversized import LARGEST_ANSWER, LARGEST_CHECKS, LARGEST_REQUEST
from shared.values.vocabulary import ENTITIES, RECORD_TYPES

SCHEMAS: Final = "#/components/schemas/"
BINDING: Final = "0.3.0"
"""The version of the AMQP bindings, of channels, operations and messages alike."""
REPLIES: Final = "replies"

ABOUT: Final = f"""May this person see this patient's records?

Commands, queries and events travel over RabbitMQ, by AMQP 0-9-1, as JSON in UTF-8.
`x-amqp-properties` is the JSON Schema of a message's AMQP properties.
A received message may have no unknown field, and none twice; of a sent one, ignore what you don't
know. A command or query has at most {LARGEST_REQUEST:,} bytes, a CheckConsents and its answer
{LARGEST_CHECKS:,}, any other answer {LARGEST_ANSWER:,}.
`x-topology` lists exchanges, queues and bindings; queues that end in .0 exist for each partition.
"""
PARTITION: Final = {
    "description": (
        "The CRC-32 of the patient's id in UTF-8, as zlib and PNG compute it, "
        "modulo the number of partitions of the deployment (8 unless set otherwise)."
    ),
    "examples": ["7"],
}
ENTITY: Final = {"description": "Who it is about.", "enum": list(ENTITIES)}
RECORD_TYPE: Final = {"description": "What may be seen.", "enum": list(RECORD_TYPES)}


def document() -> Json:
    """Describe the contract; raises LookupError where a model or an example is lacking."""
    messages = all_messages()
    return {
        "asyncapi": "3.0.0",
        "id": "urn:consent",
        "info": {
            "title": "Consent",
            "version": version("consent"),
            "description": ABOUT,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"broker": _server()},
        "channels": dict(_channels()),
        "operations": dict(_operations()),
        "components": {
            "messages": {message.name: _message(message) for message in messages},
            "schemas": _schemas(messages),
        },
        "x-topology": _topology(),
    }


def _server() -> Json:
    return {
        "host": "{host}:{port}",
        "pathname": "/{vhost}",
        "protocol": "amqp",
        "protocolVersion": "0.9.1",
        "description": "RabbitMQ 3.10 or newer.",
        "variables": {
            "host": {"default": "localhost"},
            "port": {"default": "5672"},
            "vhost": {"default": "", "description": "The deployment's virtual host."},
        },
    }


def _channels() -> Iterator[tuple[str, Json]]:
    for command in commands():
        verb = COMMANDS[command.name].verb
        yield command.name, _channel(names.COMMANDS, f"{verb}.{{partition}}", [command])
    for query in queries():
        yield query.name, _channel(names.QUERIES, query.name, [query])
    for event in events():
        address = f"{EVENTS[event.name].fact}.{{entity}}.{{record_type}}.{{partition}}"
        yield event.name, _channel(names.EVENTS, address, [event])
    yield REPLIES, _reply_channel([*outcomes(), *answers()])


def _channel(exchange: str, address: str, messages: Iterable[Message]) -> Json:
    """Describe where a message is published: at an exchange, under a routing key."""
    known = {"partition": PARTITION, "entity": ENTITY, "record_type": RECORD_TYPE}
    parameters = {name: parameter for name, parameter in known.items() if f"{{{name}}}" in address}
    kind = next(declared.type for declared in EXCHANGES if declared.name == exchange)
    return {
        "address": address,
        "messages": {
            message.name: _ref("components/messages", message.name) for message in messages
        },
        **({"parameters": parameters} if parameters else {}),
        "bindings": _amqp(
            {
                "is": "routingKey",
                "exchange": {
                    "name": exchange, "type": kind, "durable": True, "autoDelete": False,
                },
            }
        ),
    }  # fmt: skip


def _reply_channel(messages: Iterable[Message]) -> Json:
    return {
        "address": None,
        "description": "The default exchange, with `reply_to` of the request as routing key.",
        "messages": {
            message.name: _ref("components/messages", message.name) for message in messages
        },
        "bindings": _amqp({"is": "routingKey", "exchange": {"name": "", "type": "default"}}),
    }


def _operations() -> Iterator[tuple[str, Json]]:
    replies = [outcome.name for outcome in outcomes()]
    for command in commands():
        yield f"handle{command.name}", _answered(command, replies, {"deliveryMode": 2, "ack": True})
    for query in queries():
        yield f"answer{query.name}", _answered(query, [answer_name(query.name), "QueryFailed"], {})
    for event in events():
        yield (
            f"publish{event.name}",
            _operation(event, "send", {"deliveryMode": 2, "mandatory": True}),
        )


def _operation(message: Message, action: str, binding: Json) -> Json:
    return {
        "action": action,
        "channel": _ref("channels", message.name),
        "summary": message.summary,
        "messages": [_ref(f"channels/{message.name}/messages", message.name)],
        "bindings": _amqp(binding),
    }


def _answered(message: Message, answers_: Iterable[str], binding: Json) -> Json:
    return {
        **_operation(message, "receive", binding),
        "reply": {
            "address": {
                "location": "$message.header#/reply_to",
                "description": "The AMQP property `reply_to`.",
            },
            "channel": _ref("channels", REPLIES),
            "messages": [_ref(f"channels/{REPLIES}/messages", name) for name in answers_],
        },
    }


def _message(message: Message) -> Json:
    message_type = message.properties["properties"].get("type", {}).get("const")
    return {
        "name": message.name,
        "summary": message.summary,
        "contentType": message.content_type,
        **({"headers": message.headers} if message.headers else {}),
        "payload": _ref("components/schemas", message.model.__name__),
        "examples": [{"name": message.name, "payload": message.example}],
        "bindings": _amqp({"messageType": message_type} if message_type else {}),
        "x-amqp-properties": message.properties,
    }


def _schemas(messages: Iterable[Message]) -> Json:
    """Collect the schemas of all bodies, and those that they refer to, under their names."""
    found: Json = {}
    for message in messages:
        schema = every_schema(schema_of(message.model, message.direction), _from_components)
        named = {**schema.pop("$defs", {}), message.model.__name__: schema}
        for name, part in named.items():
            if found.setdefault(name, part) != part:
                raise LookupError(f"{name} is not the same received and sent: make it two models")
    return dict(sorted(found.items()))


def _from_components(schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    return {**schema, "$ref": schema["$ref"].replace(DEFINITIONS, SCHEMAS)}


def _topology() -> Json:
    """List what `topology` declares, with one partition in place of all."""
    return {
        "exchanges": {
            exchange.name: {"type": exchange.type, "durable": True, "arguments": exchange.arguments}
            for exchange in EXCHANGES
        },
        "queues": {
            queue.name: {
                "durable": True,
                "arguments": queue.arguments,
                "bindings": [{"exchange": name, "key": key} for name, key in queue.bindings],
            }
            for queue in queues(1)
        },
    }


def _amqp(binding: Json) -> Json:
    return {"amqp": {**binding, "bindingVersion": BINDING}}


def _ref(place: str, name: str) -> dict[str, Any]:
    return {"$ref": f"#/{place}/{name}"}
