"""Asks the worker in this container whether it is ready: `python -m shared.worker.health_check`."""

import os
import sys
from http.client import HTTPConnection, HTTPException
from typing import Final

WITHIN_S: Final = 3.0
WILDCARDS: Final = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where a worker is met that listens everywhere, or at the usual address."""


def health_check(port: int, host: str = "") -> tuple[bool, str]:
    """Tell whether the worker on a port of this machine is ready, and what it says."""
    connection = HTTPConnection(WILDCARDS.get(host, host), port, timeout=WITHIN_S)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        return answer.status == 200, answer.read().decode()
    except (OSError, HTTPException) as error:
        return False, f"no answer on port {port}: {str(error) or type(error).__name__}"
    finally:
        connection.close()


def main() -> int:
    """Exit with 0 while it is ready, or where HTTP_PORT is 0 and nobody can tell."""
    port = int(os.environ.get("HTTP_PORT") or 0)
    if port == 0:
        return 0
    ready, said = health_check(port, os.environ.get("HTTP_HOST", ""))
    sys.stdout.write(f"{said}\n")
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
