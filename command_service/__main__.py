"""Runs `python -m command_service`."""

from command_service.cli import app
from shared.telemetry.standard_streams import guard_standard_streams

guard_standard_streams()
app()
