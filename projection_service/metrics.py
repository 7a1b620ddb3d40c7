"""What the projection service counts and measures."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from shared.metrics import BATCH_SIZES, DURATIONS_S

EVENTS: Final = Counter("consent_events_projected", "Events by what became of them", ["fate"])
BATCH: Final = Histogram(
    "consent_projection_batch_size", "Events handled in one batch", buckets=BATCH_SIZES
)
BATCH_SECONDS: Final = Histogram(
    "consent_projection_batch_seconds", "From taking a batch to its commit", buckets=DURATIONS_S
)
LAG_EVENTS: Final = Gauge(
    "consent_projection_lag_events", "Events of the log not yet projected", ["partition"]
)
QUERIES: Final = Counter("consent_queries", "Queries answered", ["type", "status"])
