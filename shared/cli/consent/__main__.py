"""Runs `python -m shared.cli.consent`, where the `consent` command is not installed."""

from shared.cli.consent import main

main()
