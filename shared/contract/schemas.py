"""Makes the JSON Schema of a message from its model."""

from collections.abc import Callable
from typing import Final

from pydantic import BaseModel

from shared.contract.catalogue import Direction, Json, Message

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
DEFINITIONS: Final = "#/$defs/"
_MAPS: Final = ("properties", "$defs")
"""Keywords whose values are schemas by name."""
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")


def schema_file(message: Message) -> Json:
    """Write the schema of a message's body as a document of its own."""
    identity = {"$schema": DIALECT, "$id": f"urn:consent:{message.name}"}
    return {**identity, **schema_of(message.model, message.direction)}


def schema_of(model: type[BaseModel], direction: Direction) -> Json:
    """Describe what is accepted of a received body, or what to expect of a sent one."""
    schema = model.model_json_schema(ref_template=DEFINITIONS + "{model}")
    schema = every_schema(schema, _without_title)
    return every_schema(schema, _as_sent if direction == "sent" else _as_received)


def every_schema(schema: Json, change: Callable[[Json], Json]) -> Json:
    """Change a schema and every schema within it, the innermost first."""
    changed = dict(schema)
    for keyword in _MAPS:
        if keyword in schema:
            found = schema[keyword].items()
            changed[keyword] = {name: every_schema(inner, change) for name, inner in found}
    for keyword in _LISTS:
        if keyword in schema:
            changed[keyword] = [every_schema(inner, change) for inner in schema[keyword]]
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            changed[keyword] = every_schema(schema[keyword], change)
    return change(changed)


def _without_title(schema: Json) -> Json:
    """Leave out the titles, which only repeat the names of the fields."""
    return {name: value for name, value in schema.items() if name != "title"}


def _as_received(schema: Json) -> Json:
    """Leave out a default of null where null may not be sent: the field is left out then."""
    if schema.get("default", "") is None and "anyOf" not in schema:
        return {name: value for name, value in schema.items() if name != "default"}
    return schema


def _as_sent(schema: Json) -> Json:
    """Say what is always there: all but the fields that are left out where they would be null."""
    if "properties" not in schema:
        return schema
    properties = schema["properties"]
    always = [name for name, field in properties.items() if field.get("default", "") is not None]
    sent = {name: _field_as_sent(field) for name, field in properties.items()}
    return {**schema, "properties": sent, "required": always}


def _field_as_sent(schema: Json) -> Json:
    """Describe a field as it is sent: it has no default, and no null where null was the default."""
    sent = {name: value for name, value in schema.items() if name != "default"}
    if schema.get("default", "") is not None or "anyOf" not in schema:
        return sent
    kinds = [kind for kind in sent.pop("anyOf") if kind != {"type": "null"}]
    return {**kinds[0], **sent} if len(kinds) == 1 else {"anyOf": kinds, **sent}
