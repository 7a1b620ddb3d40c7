"""The comparer of contracts finds every planted break, and lets what harms nobody pass."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Final

import pytest

from shared.contract.asyncapi import document
from shared.contract.breaking import breaks

Json = dict[str, Any]
BEFORE: Final = document()


def changed(change: Callable[[Json], object]) -> list[str]:
    after = deepcopy(BEFORE)
    change(after)
    return breaks(BEFORE, after)


def schema(document: Json, name: str) -> Json:
    found: Json = document["components"]["schemas"][name]
    return found


def field(document: Json, name: str, field_name: str) -> Json:
    found: Json = schema(document, name)["properties"][field_name]
    return found


def properties(document: Json, name: str) -> Json:
    found: Json = document["components"]["messages"][name]["x-amqp-properties"]
    return found


BREAKS: Final[dict[str, tuple[Callable[[Json], object], str]]] = {
    # What we receive.
    "a new required field": (
        lambda now: (
            schema(now, "GrantConsent")["properties"].update(why={"type": "string"}),
            schema(now, "GrantConsent")["required"].append("why"),
        ),
        "GrantConsent.why: must be given now",
    ),
    "an optional field that is required": (
        lambda now: schema(now, "HasConsent")["required"].append("permission"),
        "HasConsent.permission: must be given now",
    ),
    "a field that is not accepted any more": (
        lambda now: schema(now, "ReadEvents")["properties"].pop("patient_id"),
        "ReadEvents.patient_id: is not accepted any more",
    ),
    "a narrower type": (
        lambda now: field(now, "ReadEvents", "patient_id").update(
            anyOf=[field(now, "ReadEvents", "patient_id")["anyOf"][0]]
        ),
        "ReadEvents.patient_id: does not accept any more: null",
    ),
    "a value less": (
        lambda now: field(now, "AskConsent", "target")["enum"].remove("all"),
        "AskConsent.target: does not accept any more: 'all'",
    ),
    "a list of values where there was none": (
        lambda now: field(now, "AskConsent", "by_id").update(enum=["d-1"]),
        "AskConsent.by_id: does not accept any more: anything",
    ),
    "shorter ids": (
        lambda now: field(now, "RevokeConsent", "patient_id").update(maxLength=64),
        "RevokeConsent.patient_id: must keep to maxLength 64 now",
    ),
    "smaller pages": (
        lambda now: field(now, "ReadEvents", "limit").update(maximum=100),
        "ReadEvents.limit: must keep to maximum 100 now",
    ),
    "another pattern": (
        lambda now: field(now, "ListConsents", "patient_id").update(pattern="^[a-z]+$"),
        "ListConsents.patient_id: must keep to pattern ^[a-z]+$ now",
    ),
    "another default": (
        lambda now: field(now, "HasConsent", "permission").update(default="exams"),
        "HasConsent.permission: its default 'all' has changed",
    ),
    "a property of the message that is required": (
        lambda now: properties(now, "GrantConsent")["required"].append("user_id"),
        "GrantConsent properties.user_id: must be given now",
    ),
    # What we send.
    "a field that is gone": (
        lambda now: schema(now, "ConsentAsked")["properties"].pop("issuedby"),
        "ConsentAsked.issuedby: is gone",
    ),
    "a field that may be lacking": (
        lambda now: schema(now, "CommandAccepted")["required"].remove("version"),
        "CommandAccepted.version: need not be there any more",
    ),
    "a field deep inside that is gone": (
        lambda now: (
            schema(now, "EventSummary")["properties"].pop("position"),
            schema(now, "EventSummary")["required"].remove("position"),
        ),
        "CommandAccepted.events[].position: is gone",
    ),
    "a wider type": (
        lambda now: field(now, "ConsentHeld", "version").update(type=["integer", "null"]),
        "HasConsentAnswer.version: may be now: null",
    ),
    "a value more": (
        lambda now: field(now, "CommandRejected", "error")["enum"].append("too_late"),
        "CommandRejected.error: may be now: 'too_late'",
    ),
    "any value": (
        lambda now: field(now, "ConsentRevokedData", "target").pop("enum"),
        "ConsentRevoked.data.target: may be now: anything",
    ),
    "a choice more": (
        lambda now: field(now, "EventPage", "events")["items"]["anyOf"].append({"type": "null"}),
        "ReadEventsAnswer.events[]: may be now: null",
    ),
    "a limit that does not hold any more": (
        lambda now: field(now, "ConsentGranted", "position").update(minimum=0),
        "ConsentGranted.position: does not keep to minimum 1 any more",
    ),
    "a property of the message that may be lacking": (
        lambda now: properties(now, "ConsentAsked")["required"].remove("message_id"),
        "ConsentAsked properties.message_id: need not be there any more",
    ),
    # Where they travel.
    "an event that is gone": (
        lambda now: now["components"]["messages"].pop("ConsentRevoked"),
        "ConsentRevoked: is gone",
    ),
    "an operation that is gone": (
        lambda now: now["operations"].pop("answerListConsents"),
        "operation answerListConsents: is gone",
    ),
    "a command that is not answered": (
        lambda now: now["operations"]["handleAskConsent"].pop("reply"),
        "operation handleAskConsent: is not answered any more",
    ),
    "another answer": (
        lambda now: now["operations"]["handleAskConsent"]["reply"]["messages"].append(
            {"$ref": "#/channels/replies/messages/QueryFailed"}
        ),
        "operation handleAskConsent: may be answered with QueryFailed now",
    ),
    "another content type": (
        lambda now: now["components"]["messages"]["ConsentAsked"].update(contentType="text/plain"),
        "ConsentAsked: its content type application/cloudevents+json has changed",
    ),
    "another routing key": (
        lambda now: now["channels"]["AskConsent"].update(address="ask"),
        "channel AskConsent: its address ask.{partition} is ask now",
    ),
    "another exchange": (
        lambda now: now["channels"]["AskConsent"]["bindings"]["amqp"]["exchange"].update(name="x"),
        "channel AskConsent: its exchange or queue has changed",
    ),
    "a channel that is gone": (
        lambda now: now["channels"].pop("ConsentAsked"),
        "channel ConsentAsked: is gone",
    ),
}


@pytest.mark.parametrize("planted", BREAKS)
def test_a_planted_break_is_found_and_named(planted: str) -> None:
    change, said = BREAKS[planted]
    found = changed(change)
    pages_too = [one for one in found if one.startswith("ReadEventsAnswer.events[].")]
    assert found == [said, *pages_too]
    assert len(pages_too) <= 1


HARMLESS: Final[dict[str, Callable[[Json], object]]] = {
    "nothing": lambda now: now,
    "another version": lambda now: now["info"].update(version="9.9.9"),
    "other words": lambda now: schema(now, "GrantConsent").update(description="x"),
    "an optional field that we accept": lambda now: schema(now, "GrantConsent")[
        "properties"
    ].update(why={"type": "string"}),
    "a required field that is optional": lambda now: schema(now, "GrantConsent")["required"].remove(
        "target"
    ),
    "a value more that we accept": lambda now: field(now, "AskConsent", "by_entity")["enum"].append(
        "pharmacist"
    ),
    "longer ids that we accept": lambda now: field(now, "AskConsent", "by_id").update(
        maxLength=256
    ),
    "another type that we accept": lambda now: field(now, "ReadEvents", "limit").update(
        type="number"
    ),
    "a field more that we send": lambda now: schema(now, "CommandAccepted")["properties"].update(
        took={"type": "number"}
    ),
    "a field that is always there now": lambda now: schema(now, "ConsentAsked")["required"].append(
        "issuedby"
    ),
    "a value less that we send": lambda now: field(now, "CommandRejected", "error")["enum"].remove(
        "command_id_conflict"
    ),
    "a choice less that we send": lambda now: field(now, "CommandRejected", "patient_id")[
        "anyOf"
    ].pop(),
    "a new query": lambda now: (
        now["operations"].update(answerX=deepcopy(now["operations"]["answerListConsents"])),
        now["channels"].update(X=deepcopy(now["channels"]["ListConsents"])),
    ),
}


@pytest.mark.parametrize("planted", HARMLESS)
def test_what_breaks_nobody_is_let_pass(planted: str) -> None:
    assert changed(HARMLESS[planted]) == []


def test_a_keyword_that_is_not_understood_is_no_excuse() -> None:
    planted = changed(lambda now: schema(now, "AskConsent").update(propertyNames={"minLength": 3}))
    assert planted == ["AskConsent: must keep to propertyNames {'minLength': 3} now"]
