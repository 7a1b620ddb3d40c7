"""A whole deployment in a sandbox: two databases, a virtual host, and workers as processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final, Literal
from urllib.error import URLError
from urllib.request import urlopen

from command_service.log_identity.deployment import declare_deployment
from tests.sandbox import Sandbox
from tests.sandbox.home import free_ports
from tests.sandbox.servers import in_a_loop_of_its_own
from tests.support.eventually import eventually

ServiceName = Literal["command_service", "projection_service"]
SERVICES: Final[tuple[ServiceName, ...]] = ("command_service", "projection_service")
READY_WITHIN_S: Final = 60.0
ENDS_WITHIN_S: Final = 60.0
LOG_TAIL: Final = 20


class WorkerDidNotStart(Exception):
    """A worker ended, or was not ready in time; the message has its log."""


@dataclass
class Worker:
    """A worker process."""

    service: ServiceName
    process: subprocess.Popen[bytes]
    http_port: int
    log_file: Path

    @property
    def name(self) -> str:
        """Its WORKER_ID."""
        return self.log_file.stem

    @property
    def log(self) -> str:
        """Everything that it has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    async def logs(self, *texts: str) -> None:
        """Return once all of these are in its log: what it does is told a moment later there."""

        async def told() -> bool:
            return all(text in self.log for text in texts)

        await eventually(told)

    def get(self, path: str) -> tuple[int, str]:
        """Ask its HTTP endpoint; the status is 0 where nobody answers."""
        try:
            with urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except URLError as error:
            body = error.read().decode() if hasattr(error, "read") else ""
            return getattr(error, "code", 0), body
        except (OSError, HTTPException):
            return 0, ""

    def metric(self, name: str, having: str = "") -> float:
        """Return the sum of a metric over its labels, or over those that contain this text."""
        _, text = self.get("/metrics")
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if having in line)

    def account(self) -> str:
        """Tell how it is, and how its log ends."""
        code = self.process.poll()
        state = self.get("/health/ready")[1] if code is None else f"ended with {code}"
        return "\n".join([f"{self.log_file.stem}: {state}", *self.log.splitlines()[-LOG_TAIL:]])

    def wait_ready(self, within: float = READY_WITHIN_S) -> None:
        """Return when it is ready; raises WorkerDidNotStart."""
        deadline = time.monotonic() + within
        while self.get("/health/ready")[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise WorkerDidNotStart(self.account())
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stop(self, within: float = 30) -> int:
        """Ask it to drain, and return its exit code."""
        self.send(signal.SIGTERM)
        return self.process.wait(within)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(ENDS_WITHIN_S)


@dataclass
class Deployment:
    """The URLs of one deployment, and the workers that were started in it."""

    popen: ClassVar[type[subprocess.Popen[Any]]] = subprocess.Popen
    """What starts its programs."""
    rabbitmq_url: str
    event_store_url: str
    read_model_url: str
    partitions: int
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def environment(self, **more: str) -> dict[str, str]:
        """Make the environment that a worker, or the `consent` command, runs in."""
        return {
            **os.environ,
            "RABBITMQ_URL": self.rabbitmq_url,
            "EVENT_STORE_URL": self.event_store_url,
            "READ_MODEL_URL": self.read_model_url,
            "CONSENT_PARTITIONS": str(self.partitions),
            **more,
        }

    def run(self, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run `python -m <arguments>` to its end."""
        process = self.begin(*arguments, **more)
        out, err = process.communicate(timeout=ENDS_WITHIN_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def prepare(self) -> None:
        """Migrate both databases and declare the topology."""
        self._all(("command_service", "migrate"), ("projection_service", "migrate"))
        self._all(("command_service", "topology"))

    def _all(self, *steps: tuple[str, str]) -> None:
        """Run programs side by side."""
        for step, process in [(step, self.begin(*step)) for step in steps]:
            _, complaint = process.communicate(timeout=ENDS_WITHIN_S)
            if process.returncode:
                raise WorkerDidNotStart(f"{' '.join(step)}: {complaint}")

    def declare(self) -> None:
        """Declare the topology as `topology` does, sparing a test the start of a process."""
        declared = declare_deployment(self.rabbitmq_url, self.event_store_url, self.partitions)
        in_a_loop_of_its_own(declared)

    def begin(self, *arguments: str, **more: str) -> "subprocess.Popen[str]":
        return self.popen(
            [sys.executable, "-m", *arguments],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self, service: ServiceName, *, program: Sequence[str] = (), **more: str) -> Worker:
        """Start a worker, or another program in its place; it may not be ready yet."""
        (port,) = free_ports(1)
        number = next(self._numbers)
        log_file = self.folder / f"{service}-{number}.log"
        with log_file.open("wb") as log:
            process = self.popen(
                [sys.executable, *(program or ("-m", service, "run"))],
                env=self.environment(HTTP_PORT=str(port), WORKER_ID=f"{service}-{number}", **more),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(service, process, port, log_file)
        self.workers.append(worker)
        return worker

    def start_both(self) -> tuple[Worker, Worker]:
        """Start one worker of each kind, and return when both are ready."""
        command, projection = self.start("command_service"), self.start("projection_service")
        command.wait_ready()
        projection.wait_ready()
        return command, projection

    def restart(self, worker: Worker) -> Worker:
        """Put another worker in the place of one, which acknowledges all that it has answered.

        A command that was answered and not acknowledged is decided anew where its log is lost.
        """
        assert worker.stop() == 0, worker.account()
        place = self.workers.index(worker)
        self.start(worker.service).wait_ready()
        self.workers[place] = self.workers.pop()
        return self.workers[place]

    def close(self) -> None:
        """End all workers that still run, and forget them."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.send(signal.SIGCONT)
                worker.process.kill()
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(ENDS_WITHIN_S)
        self.workers.clear()


@contextmanager
def open_deployment(
    sandbox: Sandbox, name: str, *, partitions: int = 8, prepared_from: str | None = None
) -> Iterator[Deployment]:
    """Make a deployment of its own in a sandbox; `prepared_from` names migrated databases."""
    with TemporaryDirectory(prefix="deployment-") as folder:
        deployment = Deployment(
            rabbitmq_url=sandbox.broker.create_vhost(name),
            event_store_url=sandbox.event_store_server.create_database(name, prepared_from),
            read_model_url=sandbox.read_model_server.create_database(name, prepared_from),
            partitions=partitions,
            folder=Path(folder),
        )
        try:
            yield deployment
        finally:
            deployment.close()
            sandbox.event_store_server.drop_database(name)
            sandbox.read_model_server.drop_database(name)
            sandbox.broker.delete_vhost(name)
