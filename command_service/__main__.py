"""Runs `python -m command_service`."""

from command_service.cli import app

app()
