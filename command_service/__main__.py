"""Runs `python -m command_service`."""

from shared.worker.first_moment import honour_sigterm, importing

honour_sigterm()
with importing():  # a signal may come before all this is there
    from command_service.cli import app
    from shared.telemetry.standard_streams import guard_standard_streams

guard_standard_streams()
app()
