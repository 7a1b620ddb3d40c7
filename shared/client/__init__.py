"""For other services: send commands, ask queries, subscribe to events, keep a mirror."""

from shared.client.client import ConsentClient
from shared.client.mirror.mirror import ConsentMirror
from shared.client.parking import Parking
from shared.client.subscription import Start, subscribe
from shared.errors import Stale
from shared.messages.cloud_event import CloudEvent

__all__ = ["CloudEvent", "ConsentClient", "ConsentMirror", "Parking", "Stale", "Start", "subscribe"]
