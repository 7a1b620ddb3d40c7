"""Runs `python -m projection_service`."""

from projection_service.cli import app
from shared.telemetry.standard_streams import guard_standard_streams

guard_standard_streams()
app()
