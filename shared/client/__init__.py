"""For other services: send commands, ask queries, subscribe to events."""

from shared.client.client import ConsentClient
from shared.client.parking import Parking
from shared.client.subscription import Start, subscribe
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import Actor, Question

__all__ = ["Actor", "CloudEvent", "ConsentClient", "Parking", "Question", "Start", "subscribe"]
