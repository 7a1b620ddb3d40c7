"""The buckets that both services measure with, and who owns what."""

from typing import Final

from prometheus_client import Gauge

BATCH_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DURATIONS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

OWNED: Final = Gauge("consent_partition_owned", "1 where this worker owns it", ["partition"])
READY: Final = Gauge("consent_ready", "1 while the worker is ready")
