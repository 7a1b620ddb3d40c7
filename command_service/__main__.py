"""Runs `python -m command_service`."""

from shared.worker.first_moment import honour_sigterm

honour_sigterm()

from command_service.cli import app  # noqa: E402 - a signal may come before all this is there
from shared.telemetry.standard_streams import guard_standard_streams  # noqa: E402

guard_standard_streams()
app()
