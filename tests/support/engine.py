"""Does what a runbook asks of `docker compose`, with the processes and servers of a sandbox.

A program of that name hands its words, input and environment over to the test, which does the same
as the engine would: a server's programs run against the sandbox's server, a service's command runs
in its own environment, and workers are started and drained.
"""

import json
import os
import re
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

from tests.sandbox import BrokerRefused, Sandbox
from tests.sandbox.home import free_ports
from tests.sandbox.install import postgres_programs
from tests.sandbox.servers import USER, DatabaseServer
from tests.support import warm
from tests.support.compose import Uncontained, read_compose
from tests.support.deployment import Worker

WORKERS: Final = ("command_service", "projection_service")
ROLE_JOBS: Final = ("event_store_roles", "read_model_roles")
JOBS: Final = (
    *ROLE_JOBS,
    "broker_users",
    "migrate_event_store",
    "migrate_read_model",
    "topology",
)
ADMINISTRATOR: Final = "postgres"

PROGRAM: Final = """#!{python}
import json, os, sys
from base64 import b64decode, b64encode
from urllib.request import urlopen
given = sys.stdin.buffer.read() if "exec" in sys.argv else b""
asked = {{"words": sys.argv[1:], "environment": dict(os.environ)}}
asked["input"] = b64encode(given).decode()
with urlopen("{url}", json.dumps(asked).encode(), timeout=200) as answer:
    done = json.load(answer)
sys.stdout.buffer.write(b64decode(done["out"]))
sys.stderr.buffer.write(b64decode(done["err"]))
sys.exit(done["code"])
"""

Done = tuple[int, bytes, bytes]
NOTHING: Final[Done] = (0, b"", b"")


class Engine:
    """The services of compose.yaml in a sandbox, and a program that asks for them."""

    def __init__(self, sandbox: Sandbox, replaced: dict[str, str], folder: Path) -> None:
        self._sandbox = sandbox
        self._replaced = replaced
        self._folder = folder
        self.workers: dict[str, list[Worker]] = {name: [] for name in WORKERS}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        Thread(target=self._server.serve_forever, daemon=True).start()
        self._write_program(folder / "docker")

    def close(self) -> None:
        """End all that was started."""
        for workers in self.workers.values():
            for worker in workers:
                worker.kill()
        self._server.shutdown()
        self._server.server_close()

    def sh(self, lines: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run lines as a person types them, up to the first that fails."""
        programs = [str(self._folder), str(postgres_programs() or ""), os.environ["PATH"]]
        return subprocess.run(
            ["sh", "-e", "-c", lines],
            cwd=self._folder,
            env={**os.environ, "PATH": os.pathsep.join(filter(None, programs)), **more},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def _write_program(self, path: Path) -> None:
        url = f"http://127.0.0.1:{self._server.server_port}/"
        path.write_text(PROGRAM.format(python=sys.executable, url=url), encoding="utf-8")
        path.chmod(0o755)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        do = self._do

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code, out, err = do(asked["words"], b64decode(asked["input"]), asked["environment"])
                done = {"code": code, "out": b64encode(out), "err": b64encode(err)}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(done, default=bytes.decode).encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

    def _do(self, words: list[str], given: bytes, environment: dict[str, str]) -> Done:
        made = Uncontained(read_compose(**environment)["services"], self._replaced)
        verbs: dict[str, Callable[[Uncontained, list[str], bytes], Done]] = {
            "exec": self._exec,
            "run": self._run,
            "up": self._up,
            "start": self._start,
            "stop": self._stop,
            "build": lambda *_: NOTHING,
        }
        assert words[0] == "compose"
        try:
            return verbs[words[1]](made, words[2:], given)
        except Exception as error:  # noqa: BLE001 - the program says it
            return 70, b"", f"{type(error).__name__}: {error}\n".encode()

    def _exec(self, _: Uncontained, words: list[str], given: bytes) -> Done:
        assert words.pop(0) == "-T"
        server, *command = words
        if server == "rabbitmq":
            return self._rabbitmqctl(command, given)
        store = self._store(server)
        programs = postgres_programs()
        user = [USER if word == ADMINISTRATOR else word for word in command[1:]]
        done = subprocess.run(
            [f"{programs}/{command[0]}" if programs else command[0], *user],
            input=given,
            env={**os.environ, **self._login(store), "PGDATABASE": ADMINISTRATOR},
            capture_output=True,
            timeout=200,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def _store(self, name: str) -> DatabaseServer:
        is_read_model = name.startswith("read_model")
        sandbox = self._sandbox
        return sandbox.read_model_server if is_read_model else sandbox.event_store_server

    def _login(self, store: DatabaseServer) -> dict[str, str]:
        return {"PGHOST": store.host, "PGPORT": str(store.port), "PGPASSWORD": store.password}

    def _rabbitmqctl(self, command: list[str], given: bytes) -> Done:
        assert command.pop(0) == "rabbitmqctl"
        try:
            self._sandbox.broker.ctl(*command, *given.decode().split())
        except BrokerRefused as error:
            return 1, b"", str(error).encode()
        return NOTHING

    def _run(self, made: Uncontained, words: list[str], _: bytes) -> Done:
        service, *rest = [word for word in words if word not in {"--rm", "--no-deps"}]
        if service in ROLE_JOBS:
            login = self._login(self._store(service))
            login.pop("PGPASSWORD")
            done = made.run_roles(service, **login)
        else:
            done = made.run(service, *rest)
        return done.returncode, done.stdout.encode(), done.stderr.encode()

    def _up(self, made: Uncontained, words: list[str], _: bytes) -> Done:
        scale = {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", " ".join(words))}
        named = [word for word in words if word in made.services]
        if "--no-deps" not in words:
            for job in JOBS:
                done = self._run(made, [job], b"")
                if done[0]:
                    return done
        for service in [one for one in named or WORKERS if one in WORKERS]:
            number = scale.get(service, max(1, len(self.workers[service])))
            self._stop(made, [service], b"")
            self.workers[service] = [self._begin(made, service, n) for n in range(number)]
        return NOTHING

    def _start(self, made: Uncontained, words: list[str], _: bytes) -> Done:
        for service in words:
            self.workers[service] = [self._begin(made, service, 0)]
        return NOTHING

    def _stop(self, _: Uncontained, words: list[str], __: bytes) -> Done:
        for service in words:
            for worker in self.workers[service]:
                assert worker.stop() == 0, worker.account()
            self.workers[service] = []
        return NOTHING

    def _begin(self, made: Uncontained, service: str, number: int) -> Worker:
        (port,) = free_ports(1)
        log_file = self._folder / f"{service}-{number}.log"
        with log_file.open("ab") as log:
            process = warm.Popen(
                made.words(service),
                env=made.environment(service, HTTP_PORT=str(port)),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # As the engine does, it does not wait: after a restore a worker may not be ready for long.
        return Worker(service, process, port, log_file)  # type: ignore[arg-type] # by its name
