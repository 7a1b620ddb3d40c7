"""Folds a batch of events into changes of the read model. Pure."""

from collections.abc import Iterable, Mapping, MutableMapping

from pydantic import ValidationError

from projection_service.projections.changes import Changes, Key, Parked
from projection_service.projections.consents import NOTHING, Consent, evolve
from projection_service.projections.spans import change_of
from shared.messages.cloud_event import CloudEvent
from shared.messages.events import ConsentEvent, UnknownEventError, read_event

Fact = tuple[Key, ConsentEvent] | str
"""Whose consent it is about and what happened, or why it can't be applied."""


def read(event: CloudEvent) -> Fact:
    """Read what happened."""
    try:
        happened = read_event(event.type, event.schemaversion, event.data)
    except UnknownEventError as error:
        return str(error)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, mistake["loc"])) for mistake in error.errors())
        return f"its data is not valid: {fields}"
    return Key(event.subject, happened.grantee), happened


def keys(facts: Iterable[tuple[CloudEvent, Fact]]) -> list[Key]:
    """List the consents that these events may change, each once."""
    return list(dict.fromkeys(fact[0] for _, fact in facts if not isinstance(fact, str)))


def fold(
    facts: Iterable[tuple[CloudEvent, Fact]],
    consents: Mapping[Key, Consent],
    parked: MutableMapping[str, int],
) -> Changes:
    """Apply events in order to the consents that exist, and park what can't be applied.

    `parked` holds the first parked position of each patient who has one; a patient's
    later events are parked behind it.
    """
    changes = Changes()
    for event, fact in facts:
        if event.subject in parked:
            reason = f"behind position {parked[event.subject]}, which is parked"
            changes.parked.append(_parked(event, reason))
        elif isinstance(fact, str):
            parked[event.subject] = event.position
            changes.parked.append(_parked(event, fact))
        elif isinstance(change := change_of(event), str):
            parked[event.subject] = event.position
            changes.parked.append(_parked(event, change))
        else:
            key, happened = fact
            stored = consents.get(key, NOTHING)
            before = changes.consents.get(key, stored)
            changes.spans.apply(*key, happened, change, stored=stored, before=before)
            changes.consents[key] = evolve(before, happened)
            changes.versions[event.subject] = event.streamversion
    return changes


def _parked(event: CloudEvent, reason: str) -> Parked:
    return Parked(event.partition, event.position, event.subject, event.to_json().decode(), reason)
