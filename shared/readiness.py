"""Whether a worker is ready, and if not, what it waits for."""

from shared.metrics import READY


class Readiness:
    """Shared by a worker's session, which knows, and its HTTP endpoint, which tells."""

    def __init__(self) -> None:
        self.missing: str | None = "start"
        self.reason = "starting"

    def is_ready(self) -> None:
        """Everything needed is there."""
        self.missing, self.reason = None, ""
        READY.set(1)

    def waits_for(self, missing: str, reason: str = "") -> None:
        """Something needed is not there (yet)."""
        self.missing, self.reason = missing, reason
        READY.set(0)

    def failed(self, reason: str) -> None:
        """Say why what is missing is missing."""
        self.missing, self.reason = self.missing or "session", reason
        READY.set(0)
