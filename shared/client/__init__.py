"""For other services: send commands, ask queries, subscribe to events."""

from shared.client.client import ConsentClient
from shared.client.parking import Parking
from shared.client.subscription import Start, subscribe
from shared.errors import LogSetBack
from shared.event_log.set_back import LogPlace, SetBack, place_of
from shared.messages.cloud_event import CloudEvent

__all__ = [
    "CloudEvent",
    "ConsentClient",
    "LogPlace",
    "LogSetBack",
    "Parking",
    "SetBack",
    "Start",
    "place_of",
    "subscribe",
]
