"""Tells which changes of the contract break somebody who relies on the last release.

A message that we receive may become wider: whoever sends it as before must be understood.
A message that we send may become narrower: whoever reads it as before must not be surprised.
"""

from collections.abc import Iterator
from typing import Final

from shared.contract.catalogue import Json
from shared.contract.narrowing import Comparison, Excess, Kind

WORDS: Final = {
    "receive": {
        Kind.MAY_LACK: "must be given now",
        Kind.NOT_KNOWN: "has a meaning now",
        Kind.ONE_MORE: "is not accepted any more",
        Kind.VALUES: "does not accept any more: {}",
        Kind.LIMIT: "must keep to {} now",
    },
    "send": {
        Kind.MAY_LACK: "need not be there any more",
        Kind.NOT_KNOWN: "is gone",
        Kind.ONE_MORE: "is new, where nothing further was announced",
        Kind.VALUES: "may be now: {}",
        Kind.LIMIT: "does not keep to {} any more",
    },
}
BODIES: Final = (("payload", ""), ("headers", " headers"), ("x-amqp-properties", " properties"))


def breaks(old: Json, new: Json) -> list[str]:
    """List, one line each, what the new document breaks of the old one."""
    return [*_gone_operations(old, new), *_changed_channels(old, new), *_messages(old, new)]


def _gone_operations(old: Json, new: Json) -> Iterator[str]:
    for name, before in old["operations"].items():
        now = new["operations"].get(name)
        if now is None or now["action"] != before["action"]:
            yield f"operation {name}: is gone"
        elif "reply" in before and "reply" not in now:
            yield f"operation {name}: is not answered any more"


def _changed_channels(old: Json, new: Json) -> Iterator[str]:
    for name, before in old["channels"].items():
        now = new["channels"].get(name)
        if now is None:
            yield f"channel {name}: is gone"
            continue
        if now["address"] != before["address"]:
            yield f"channel {name}: its address {before['address']} is {now['address']} now"
        if now["bindings"]["amqp"] != before["bindings"]["amqp"]:
            yield f"channel {name}: its exchange or queue has changed"


def _messages(old: Json, new: Json) -> Iterator[str]:
    now = new["components"]["messages"]
    for name, before in old["components"]["messages"].items():
        if name not in now:
            yield f"{name}: is gone"
            continue
        if before["contentType"] != now[name]["contentType"]:
            yield f"{name}: its content type {before['contentType']} has changed"
        for part, label in BODIES:
            if part in before:
                after = now[name].get(part, {})
                yield from _schema(old, new, before[part], after, name, label)
    for name, before in _answers(old).items():
        for more in sorted(_answers(new).get(name, before) - before):
            yield f"operation {name}: may be answered with {more} now"


def _schema(old: Json, new: Json, before: Json, now: Json, name: str, label: str) -> Iterator[str]:
    path = f"{name}{label}"
    if name in _received(old):
        words, found = WORDS["receive"], Comparison(old, new).excess(before, now, path)
        yield from _changed_defaults(old, new, before, now, path)
    else:
        words, found = WORDS["send"], Comparison(new, old).excess(now, before, path)
    yield from (_said(excess, words) for excess in found)


def _said(excess: Excess, words: dict[Kind, str]) -> str:
    return f"{excess.path}: {words[excess.kind].format(excess.what)}"


def _received(document: Json) -> set[str]:
    return {
        message["$ref"].rsplit("/", 1)[1]
        for operation in document["operations"].values()
        if operation["action"] == "receive"
        for message in operation["messages"]
    }


def _answers(document: Json) -> dict[str, set[str]]:
    return {
        name: {message["$ref"].rsplit("/", 1)[1] for message in operation["reply"]["messages"]}
        for name, operation in document["operations"].items()
        if "reply" in operation
    }


def _changed_defaults(old: Json, new: Json, before: Json, now: Json, path: str) -> Iterator[str]:
    """Whoever leaves a field out means the default of the release that it was written for."""
    mine = _fields(before, old)
    for name, field in _fields(now, new).items():
        if name in mine and mine[name].get("default") != field.get("default"):
            yield f"{path}.{name}: its default {mine[name].get('default')!r} has changed"


def _fields(schema: Json, document: Json) -> Json:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    fields: Json = schema.get("properties", {})
    return fields
