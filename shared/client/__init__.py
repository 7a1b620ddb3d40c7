"""For other services: send commands, ask queries, subscribe to events, keep a mirror.

Each part is imported when it is first asked for: who only asks needs neither of the last two.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.client.client import ConsentClient
    from shared.client.mirror.mirror import ConsentMirror
    from shared.client.parking import Parking
    from shared.client.subscription import Start, subscribe
    from shared.errors import LogSetBack, Stale
    from shared.event_log.set_back import LogPlace, SetBack, place_of
    from shared.messages.cloud_event import CloudEvent
    from shared.messages.queries import Actor, Question

_PLACES = {
    "Actor": "shared.messages.queries",
    "CloudEvent": "shared.messages.cloud_event",
    "ConsentClient": "shared.client.client",
    "ConsentMirror": "shared.client.mirror.mirror",
    "LogPlace": "shared.event_log.set_back",
    "LogSetBack": "shared.errors",
    "Parking": "shared.client.parking",
    "Question": "shared.messages.queries",
    "SetBack": "shared.event_log.set_back",
    "Stale": "shared.errors",
    "Start": "shared.client.subscription",
    "place_of": "shared.event_log.set_back",
    "subscribe": "shared.client.subscription",
}

__all__ = [
    "Actor",
    "CloudEvent",
    "ConsentClient",
    "ConsentMirror",
    "LogPlace",
    "LogSetBack",
    "Parking",
    "Question",
    "SetBack",
    "Stale",
    "Start",
    "place_of",
    "subscribe",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whichever is asked for
    """Import what is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
