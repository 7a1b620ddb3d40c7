"""For other services: send commands, ask queries, subscribe to events, keep a mirror."""

from shared.client.client import ConsentClient
from shared.client.mirror.mirror import ConsentMirror
from shared.client.parking import Parking
from shared.client.subscription import Start, subscribe
from shared.errors import LogSetBack, Stale
from shared.event_log.set_back import LogPlace, SetBack, place_of
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import Actor, Question

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
