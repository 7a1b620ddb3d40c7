"""The `consent` command: what another service does over the broker, from the command line."""

from shared.worker.first_moment import honour_sigterm, importing


def main() -> None:
    """Run the command line."""
    honour_sigterm()
    with importing():
        from shared.cli.consent.program import run  # noqa: PLC0415 - a signal may come before

    run()
