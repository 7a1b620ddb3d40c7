"""Runs `python -m projection_service`."""

from projection_service.cli import app

app()
