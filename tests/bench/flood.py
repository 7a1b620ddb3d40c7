"""Floods a worker with histories: `python -m tests.bench.flood SECONDS`, until then or killed."""

import os
import sys

import typer

from tests.bench.questions import encoded, keep_asking

IN_FLIGHT = 50


def _body(number: int) -> bytes:
    return encoded(patient_id=f"old-{number % 1000 + 1}")


if __name__ == "__main__":
    typer.echo("ready")
    sys.stdout.flush()
    keep_asking(os.environ["RABBITMQ_URL"], "ConsentHistory", _body, IN_FLIGHT, float(sys.argv[1]))
