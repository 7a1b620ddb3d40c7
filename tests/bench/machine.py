"""What the figures were measured on."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from tests.bench.bench import expect
from tests.sandbox import Sandbox
from tests.sandbox.servers import DatabaseServer

Facts = dict[str, str | int | float | None]


def facts(sandbox: Sandbox) -> Facts:
    """Look at the machine and ask the servers."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "postgresql": _setting(sandbox.event_store_server, "server_version"),
        "shared_buffers": _setting(sandbox.event_store_server, "shared_buffers"),
        "rabbitmq": sandbox.broker.api("GET", "/overview")["rabbitmq_version"],
    }


def give_memory(sandbox: Sandbox) -> None:
    """Give PostgreSQL a quarter of the memory for its buffers, as its manual advises, or 2 GB.

    Its default, 128 MB, is smaller than the indexes of a million events.
    """
    servers = (sandbox.event_store_server, sandbox.read_model_server)
    megabytes = min(psutil.virtual_memory().total // 4, 2 << 30) // len(servers) >> 20
    for server in servers:
        server.execute(f"ALTER SYSTEM SET shared_buffers = '{megabytes}MB'")
        server.stop()
        server.start()


def check_durable(sandbox: Sandbox) -> None:
    """Raise UnmetError where a database does not wait for its disk."""
    for server in (sandbox.event_store_server, sandbox.read_model_server):
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            expect(_setting(server, name) == "on", f"PostgreSQL runs with {name} off")


def _setting(server: DatabaseServer, name: str) -> str:
    (row,) = server.fetch(f"SHOW {name}")
    return str(row[0])


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _revision() -> str | None:
    """Name the commit, with a mark where files differ from it; None where git can't tell."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
