"""What the command service counts and measures."""

from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from shared.rabbitmq.publishing import Why
from shared.telemetry.lag import Lag
from shared.telemetry.metrics import BATCH_SIZES, DURATIONS_S

COMMANDS: Final = Counter(
    "consent_commands", "Commands answered, by type and outcome", ["type", "outcome"]
)
REDELIVERED: Final = Counter("consent_commands_redelivered", "Deliveries that had come before")
BATCH: Final = Histogram(
    "consent_command_batch_size", "Commands handled in one batch", buckets=BATCH_SIZES
)
BATCH_SECONDS: Final = Histogram(
    "consent_command_batch_seconds",
    "From taking a batch to its last reply",
    buckets=DURATIONS_S,
)
EVENTS_APPENDED: Final = Counter("consent_events_appended", "Events appended to the log")
ENDS_RECORDED: Final = Counter("consent_ends_recorded", "Ends of consents recorded as events")
OLDEST_DUE_END: Final = Gauge(
    "consent_oldest_due_end_seconds",
    "How long ago the earliest end of a consent came that is not recorded yet",
)
ENDS_PUT_OFF: Final = Gauge(
    "consent_ends_put_off", "Patients whose consents ended and this could not be recorded"
)
EVENTS_PUBLISHED: Final = Counter("consent_events_published", "Events confirmed by the broker")
EVENTS_REFUSED: Final = Counter(
    "consent_events_refused",
    "Events that a queue bound to the exchange refused; the projection got them by themselves",
    ["why"],
)
for _why in Why:
    EVENTS_REFUSED.labels(_why)
COMMAND_SECONDS: Final = Histogram(
    "consent_command_seconds",
    "From a command's arrival at the worker to its reply",
    buckets=DURATIONS_S,
)
LOG_HEAD: Final = Gauge("consent_log_head", "The last position of the log", ["partition"])
PUBLISH_BACKLOG: Final = Lag("consent_publish_backlog", "Events appended and not yet confirmed")
REGISTRY.register(PUBLISH_BACKLOG)
