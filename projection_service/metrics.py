"""What the projection service counts and measures."""

from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from shared.telemetry.lag import Lag
from shared.telemetry.metrics import BATCH_SIZES, DURATIONS_S

EVENTS: Final = Counter("consent_events_projected", "Events by what became of them", ["fate"])
BATCH: Final = Histogram(
    "consent_projection_batch_size", "Events handled in one batch", buckets=BATCH_SIZES
)
BATCH_SECONDS: Final = Histogram(
    "consent_projection_batch_seconds", "From taking a batch to its commit", buckets=DURATIONS_S
)
QUESTIONS: Final = Counter(
    "consent_questions", "Questions answered by HasConsent and CheckConsents", ["answer"]
)
LAG: Final = Lag("consent_projection_lag", "Events of the log not yet projected")
REGISTRY.register(LAG)
PARKED_EVENTS: Final = Gauge("consent_parked_events", "Events that could not be applied")
PARKED_PATIENTS: Final = Gauge("consent_parked_patients", "Patients whose events wait for one")
