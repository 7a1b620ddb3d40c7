"""CPU seconds of each part of a deployment, from before a run to after it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]

from tests.bench.bench import Bench, Figure
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

NAMES = {
    "command_service": "command workers",
    "projection_service": "projection workers",
    "broker": "RabbitMQ",
    "event_store": "PostgreSQL, event store",
    "read_model": "PostgreSQL, read model",
}


@dataclass(frozen=True)
class CpuReading:
    """CPU seconds used so far."""

    parts: Mapping[str, float]
    """By part; a part whose processes can't be seen is missing."""
    benchmark: float
    machine: float
    """By everything that runs on this machine."""
    moment: float
    """When this was read, by the clock; between two readings, how long that was."""

    def since(self, before: "CpuReading") -> "CpuReading":
        """What was used between two readings."""
        parts = {name: self.parts[name] - before.parts[name] for name in self.parts}
        return CpuReading(
            parts,
            self.benchmark - before.benchmark,
            self.machine - before.machine,
            self.moment - before.moment,
        )

    def used_by_others(self) -> float | None:
        """Percent of the machine that neither the deployment nor the benchmark used.

        None where a part of the deployment can't be told from the others.
        """
        if self.parts.keys() != NAMES.keys():
            return None
        others = self.machine - self.benchmark - sum(self.parts.values())
        return 100 * others / self.moment / (psutil.cpu_count() or 1)


class CpuMeter:
    """Reads the CPU time of the parts of a deployment."""

    def __init__(self, roots: Mapping[str, Sequence[psutil.Process]]) -> None:
        self._roots = roots

    @classmethod
    async def of(cls, bench: Bench, deployment: Deployment) -> "CpuMeter":
        """Find the processes; servers in containers may be out of sight."""
        sandbox = bench.sandbox
        pids: list[tuple[str, int]] = [
            *((one.service, one.process.pid) for one in deployment.workers),
            ("broker", await eventually(lambda: _broker_pid(sandbox.broker))),
            ("event_store", _postmaster_pid(sandbox.event_store_server)),
            ("read_model", _postmaster_pid(sandbox.read_model_server)),
        ]
        expected = {"broker": "beam", "event_store": "postgres", "read_model": "postgres"}
        found = defaultdict(list)
        for part, pid in pids:
            # In a container the servers count their processes from 1: that is somebody else here.
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if expected.get(part, "") in process.name():
                    found[part].append(process)
        return cls(found)

    def read(self) -> CpuReading:
        """Read all now."""
        parts = {part: sum(map(_tree_seconds, roots)) for part, roots in self._roots.items()}
        own = psutil.Process().cpu_times()
        machine = psutil.cpu_times()
        # PostgreSQL's sessions and RabbitMQ's helpers are children of what is counted above.
        idle = machine.idle + getattr(machine, "iowait", 0) + getattr(machine, "steal", 0)
        guests = getattr(machine, "guest", 0) + getattr(machine, "guest_nice", 0)
        busy = sum(machine) - idle - guests
        return CpuReading(parts, own.user + own.system, busy, monotonic())


def _tree_seconds(root: psutil.Process) -> float:
    """Sum a process and its children, those included that have ended meanwhile."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                total += getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
    return total


async def _broker_pid(broker: Any) -> int:  # noqa: ANN401
    """Ask the broker; it knows some seconds after its start."""
    (node,) = broker.api("GET", "/nodes")
    return int(node.get("os_pid") or 0)


def _postmaster_pid(server: Any) -> int:  # noqa: ANN401
    (row,) = server.fetch("SELECT pg_read_file('postmaster.pid') AS text")
    return int(row["text"].splitlines()[0])


def others_figure(name: str, readings: Iterable[CpuReading]) -> Figure:
    """Tell how much of the machine was not ours: if it is much, the other figures are too low."""
    used = (one.used_by_others() for one in readings)
    return Figure(f"{name}: machine used by others", "%", [one for one in used if one is not None])
