"""What both services count and measure, and the buckets that they measure with."""

from functools import cache
from importlib.metadata import version
from typing import Final

from prometheus_client import Counter, Gauge, Info

BATCH_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DURATIONS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

OWNED: Final = Gauge("consent_partition_owned", "1 where this worker owns it", ["partition"])
LEASED: Final = Gauge(
    "consent_partition_leased", "1 while any worker of this kind holds a lease on it", ["partition"]
)
SET_BACK: Final = Gauge(
    "consent_log_set_back", "1 while the log lacks what was taken from it", ["partition"]
)
READY: Final = Gauge("consent_ready", "1 while the worker is ready")
BLOCKED: Final = Gauge(
    "consent_broker_blocked", "1 while the broker, short of memory or disk, takes nothing"
)
SESSIONS_LOST: Final = Counter("consent_sessions_lost", "How often the worker had to begin anew")
QUERIES: Final = Counter("consent_queries", "Queries answered", ["type", "status"])
REPLIES_LOST: Final = Counter(
    "consent_replies_lost",
    "Replies given up: to a forged address, to a queue that takes none, or for want of room",
    ["reason"],
)
for _reason in ("forged", "not_a_reply_queue", "no_room"):
    REPLIES_LOST.labels(_reason)
REPLIES_WAITING: Final = Gauge(
    "consent_replies_waiting", "Replies to direct addresses that are not proven good yet"
)
QUEUE_MESSAGES: Final = Gauge(
    "consent_queue_messages", "Messages on the broker that nobody has in hand", ["queue"]
)
QUEUE_CONSUMERS: Final = Gauge("consent_queue_consumers", "Who reads the queue", ["queue"])
OLDEST_IN_HAND: Final = Gauge(
    "consent_oldest_in_hand_seconds",
    "How long the worker has had the oldest delivery that it has not settled",
    ["kind"],
)
DEAD_LETTERS_WAITING: Final = Gauge(
    "consent_dead_letters_waiting", "Messages at fault that the dead letters do not take"
)
LAST_PROGRESS: Final = Gauge(
    "consent_last_progress_timestamp_seconds", "When this step last got a batch done", ["step"]
)
LAST_LOOK: Final = Gauge(
    "consent_last_look_timestamp_seconds",
    "When the observer last saw the database, the broker, the log",
    ["at"],
)
LOG_LINES_DROPPED: Final = Gauge(
    "consent_log_lines_dropped", "Log lines that nobody was there to read, since the start"
)
BUILD: Final = Info("consent_build", "Which version runs")


@cache
def last_progress(step: str) -> Gauge:
    """Find the gauge of a step, which comes to be when it first gets a batch done."""
    return LAST_PROGRESS.labels(step)


def tell_build(service: str) -> None:
    """Say which service of which version this process is."""
    BUILD.info({"service": service, "version": version("consent")})
