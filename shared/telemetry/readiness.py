"""Whether a worker is ready, and if not, what it waits for."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Final

import structlog

from shared.errors import BrokerBlocked
from shared.telemetry.metrics import BLOCKED, READY

OVERDUE_S: Final = 3.0
"""After three missed renewals something is wrong; the leases hold for two seconds more."""
STUCK_S: Final = 60.0
"""After so long without a renewal, or a dependency to wait for, it will not go on by itself."""
AT_WORK: Final = (None, "session", "start", "drain")
"""What is missing while nothing is waited for that lies outside the process."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something needed that is not right, by its short name, and why."""

    missing: str
    reason: str


class Readiness:
    """Shared by a worker's session and its observer, who know, and its HTTP endpoint, which tells.

    `missing` is what the session waits for: start, database, broker, topology, log_set_back, drain;
    or None.
    """

    def __init__(self) -> None:
        self.missing: str | None = "start"
        self.reason = "starting"
        self._seen: dict[str, Trouble] = {}
        self._alarms: dict[str, str] = {}
        self._since_renewal: Callable[[], float] | None = None
        self._waited_until = monotonic()
        READY.set_function(lambda: not self.troubles())

    def is_ready(self) -> None:
        """The session has everything that it needs."""
        self._now_missing(None, "")

    def waits_for(self, missing: str, reason: str = "") -> None:
        """Something that the session needs is not there (yet)."""
        self._now_missing(missing, reason)

    def failed(self, reason: str) -> None:
        """Say why what is missing is missing."""
        self._now_missing(self.missing or "session", reason)

    def renewals(self, seconds_since: Callable[[], float] | None) -> None:
        """Give what tells how long ago the leases were renewed; None while there are none."""
        self._since_renewal = seconds_since

    def report(self, at: str, missing: str = "", reason: str = "") -> None:
        """Note what a look at the database or the broker found; nothing where all is right."""
        before = self._seen.pop(at, None)
        if missing:
            self._seen[at] = Trouble(missing, reason)
            if before is None or before.missing != missing:
                log.info("trouble.seen", missing=missing, reason=reason)
        elif before is not None:
            log.info("trouble.passed", missing=before.missing)

    def blocked(self, whose: str, reason: str) -> None:
        """Note why the broker takes nothing from a connection; nothing while it does."""
        self._alarms[whose] = reason
        reasons = [alarm for alarm in self._alarms.values() if alarm]
        BLOCKED.set(bool(reasons))
        if reasons:
            self.report("alarm", "broker_blocked", str(BrokerBlocked(reasons[0])))
        else:
            self.report("alarm")

    def troubles(self) -> list[Trouble]:
        """Everything that is not right, the session's own first; empty while it is ready."""
        own = [Trouble(self.missing, self.reason)] if self.missing else []
        return [*own, *self._seen.values(), *self._overdue()]

    def is_live(self) -> bool:
        """Whether leases were renewed, or a dependency was waited for, within the last minute."""
        if self.missing not in AT_WORK:
            return True
        since_renewal = self._since_renewal() if self._since_renewal else inf
        return min(since_renewal, monotonic() - self._waited_until) <= STUCK_S

    def _now_missing(self, missing: str | None, reason: str) -> None:
        if self.missing not in AT_WORK:
            self._waited_until = monotonic()
        self.missing, self.reason = missing, reason

    def _overdue(self) -> list[Trouble]:
        seconds = self._since_renewal() if self._since_renewal else 0.0
        if seconds <= OVERDUE_S:
            return []
        return [Trouble("leases", f"not renewed for {seconds:.0f} s, the database holds it up")]
