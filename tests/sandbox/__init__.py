"""Two databases and a broker for whoever needs real ones, from containers or programs."""

import os
import sys

from tests.sandbox.containers import NO_IMAGES, open_containers
from tests.sandbox.install import engine_answers
from tests.sandbox.programs import open_programs
from tests.sandbox.servers import BrokerRefused, Sandbox, ServerDidNotStart
from tests.support.certificates import Certificates

__all__ = ["BrokerRefused", "Sandbox", "ServerDidNotStart", "open_sandbox"]

INSTEAD = "taking the programs on this machine, as CONSENT_SANDBOX=programs does"
OPENERS = {"containers": open_containers, "programs": open_programs}


def open_sandbox(*, durable: bool = True, tls: Certificates | None = None) -> Sandbox:
    """Start the servers: in containers where a Docker engine answers, else as programs.

    Where its images can't be had, as behind a company's wall, one line says so, and programs serve.
    CONSENT_SANDBOX=containers|programs decides instead. With `durable=False` the databases are
    faster, and may lose everything when one of them is taken down. With `tls`, which only the
    programs know, the broker has a second port that speaks TLS alone, and the databases speak it
    with whoever wants; with the user `encrypted` nothing else. Raises `ServerDidNotStart`.
    """
    if tls is not None:
        return open_programs(durable=durable, tls=tls)
    if kind := os.environ.get("CONSENT_SANDBOX"):
        return OPENERS[kind](durable=durable)
    if engine_answers():
        try:
            return open_containers(durable=durable)
        except NO_IMAGES as error:
            why = " ".join(str(error).split()) or type(error).__name__
            print(f"A Docker engine answers, but can't be used ({why}): {INSTEAD}", file=sys.stderr)
    return open_programs(durable=durable)
