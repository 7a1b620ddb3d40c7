"""Every command line of the runbook is run, as it stands, on a deployment that works meanwhile."""

import re
from collections.abc import Iterator
from typing import Final

import pytest

from tests.sandbox import Sandbox
from tests.sandbox.home import Home, free_ports
from tests.sandbox.install import postgres_programs
from tests.sandbox.programs import PostgresProgram
from tests.sandbox.servers import DatabaseServer
from tests.support.compose import ROOT, read_compose
from tests.support.engine import Engine
from tests.support.kubernetes import manifests

pytestmark = pytest.mark.timeout(300)

PAGE: Final = (ROOT / "shared" / "containers" / "README.md").read_text(encoding="utf-8")
RUNBOOK: Final = PAGE.split("\n## Runbook\n")[1].split("\n## ")[0]
MARKED: Final = re.compile(r"<!-- run: (.+?) -->\n```sh\n(.*?)```", re.DOTALL)
LINES: Final[dict[str, str]] = dict(MARKED.findall(RUNBOOK))
RUN_HERE: Final = {
    "back up",
    "restore",
    "check a restore",
    "take the log as it is",
    "promote",
    "lose the broker",
    "upgrade",
    "upgrade the broker",
    "change a password",
    "change the administrators' passwords",
    "scale",
}
VHOST: Final = "runbook"
NAMES: Final = ("event_store", "read_model")
OPERATOR: Final = "operator"
BROKER_USERS: Final = ("topology", "command-worker", "projection-worker", "console")


def test_every_block_of_the_runbook_is_run_by_a_test() -> None:
    assert set(LINES) == RUN_HERE
    assert RUNBOOK.count("```sh") == len(LINES)


@pytest.fixture(scope="module")
def engine(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Start all of it, as `docker compose up` does from nothing."""
    broker, servers = sandbox.broker, stores(sandbox)
    replaced = {
        "rabbitmq:5672/": f"{broker.host}:{broker.port}/{VHOST}",
        "rabbitmq:15672": f"{broker.host}:{broker.management_port}",
    }
    for name, server in servers.items():
        replaced[f"{name}:5432"] = f"{server.host}:{server.port}"
        server.create_database(name)
        server.execute("CREATE ROLE postgres SUPERUSER LOGIN PASSWORD 'demo-admin'")
    begin_broker(sandbox)
    made = Engine(sandbox, replaced, tmp_path_factory.mktemp("runbook"))
    try:
        sh(made, "docker compose up --detach")
        yield made
    finally:
        made.close()
        lose_broker(sandbox)
        for name, server in servers.items():
            server.drop_database(name)
            for role in ("consent_worker", "consent_owner", "postgres"):
                server.execute(f"DROP ROLE IF EXISTS {role}")


def stores(sandbox: Sandbox) -> dict[str, DatabaseServer]:
    return dict(zip(NAMES, (sandbox.event_store_server, sandbox.read_model_server), strict=True))


def begin_broker(sandbox: Sandbox) -> None:
    """Begin with an administrator and nothing else, as the broker's image does."""
    password = read_compose()["services"]["rabbitmq"]["environment"]["RABBITMQ_DEFAULT_PASS"]
    user = {"password": password, "tags": "administrator"}
    sandbox.broker.api("PUT", f"/users/{OPERATOR}", user)
    sandbox.broker.create_vhost(VHOST)
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    sandbox.broker.api("PUT", f"/permissions/{VHOST}/{OPERATOR}", everything)


def lose_broker(sandbox: Sandbox) -> None:
    sandbox.broker.delete_vhost(VHOST)
    for user in (OPERATOR, *BROKER_USERS):
        sandbox.broker.api("DELETE", f"/users/{user}")


def sh(engine: Engine, lines: str, **more: str) -> str:
    done = engine.sh(lines, **more)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def grant(engine: Engine, patient: str, **more: str) -> None:
    words = f"docker compose run --rm consent grant {patient} doctor d-1 exams --within 60"
    assert "accepted" in sh(engine, words, **more)
    words = f"docker compose run --rm consent check {patient} doctor d-1 exams --min-version 1"
    sh(engine, words, **more)


def test_what_is_restored_answers_as_when_it_was_backed_up(engine: Engine) -> None:
    grant(engine, "p-before")
    assert "TABLE DATA public events" in sh(engine, LINES["back up"])
    grant(engine, "p-after")
    assert "1 events that were published are no more" in sh(engine, LINES["restore"])
    assert "0 differences" in sh(engine, LINES["check a restore"])
    sh(engine, "docker compose run --rm consent check p-before doctor d-1 exams --min-version 1")
    lost = engine.sh("docker compose run --rm consent check p-after doctor d-1 exams")
    assert lost.returncode == 1, lost.stdout
    grant(engine, "p-later")
    sh(engine, LINES["take the log as it is"])
    grant(engine, "p-last")


def test_a_broker_that_lost_everything_is_made_anew_while_the_workers_wait(
    engine: Engine, sandbox: Sandbox
) -> None:
    lose_broker(sandbox)
    begin_broker(sandbox)
    sh(engine, LINES["lose the broker"])
    grant(engine, "p-new-broker")


def test_an_upgrade_goes_through_while_the_workers_of_before_work(engine: Engine) -> None:
    before = [worker.process.pid for one in engine.workers.values() for worker in one]
    sh(engine, LINES["upgrade"])
    grant(engine, "p-upgraded")
    sh(engine, LINES["upgrade the broker"])
    assert not {worker.process.pid for one in engine.workers.values() for worker in one} & {*before}


def test_an_upgrade_whose_job_fails_leaves_the_workers_as_they_are(engine: Engine) -> None:
    before = {name: [one.process.pid for one in found] for name, found in engine.workers.items()}
    done = engine.sh(LINES["upgrade"], CONSENT_PARTITIONS="16")
    assert done.returncode == 2
    assert "set CONSENT_PARTITIONS=8" in done.stderr
    after = {name: [one.process.pid for one in found] for name, found in engine.workers.items()}
    assert after == before


def test_passwords_are_changed_in_a_running_deployment(engine: Engine) -> None:
    sh(engine, LINES["change a password"])
    grant(engine, "p-changed")
    sh(engine, "docker compose up --detach")


def test_the_administrators_passwords_are_changed(engine: Engine) -> None:
    lines = LINES["change the administrators' passwords"]
    sh(engine, lines)
    refused = engine.sh("docker compose run --rm --no-deps event_store_roles")
    assert "password authentication failed" in refused.stderr
    exported, _, rest = lines.partition("\n")
    assert exported.startswith("export ")
    old = {"OPERATOR_PASSWORD": "demo-operator", "DATABASE_ADMIN_PASSWORD": "demo-admin"}
    sh(engine, rest, **old)


def test_more_workers_share_the_partitions_out(engine: Engine) -> None:
    sh(engine, LINES["scale"])
    assert {name: len(found) for name, found in engine.workers.items()} == {
        "command_service": 3,
        "projection_service": 2,
    }
    grant(engine, "p-scaled")
    sh(engine, "docker compose up --detach --scale command_service=1 --scale projection_service=1")


class Standby(PostgresProgram):
    """A copy that follows a server."""

    def follow(self, primary: DatabaseServer) -> None:
        """Take a base backup over, and begin."""
        source = f"--dbname={primary.url()}"
        command = (self._programs / "pg_basebackup", source, f"--pgdata={self.data}")
        self._home.run(*command, "--write-recovery-conf", "--checkpoint=fast")
        self.start()

    @property
    def is_standby(self) -> bool:
        return bool(self.fetch("SELECT pg_is_in_recovery()")[0][0])


def test_a_standby_is_promoted(sandbox: Sandbox, engine: Engine) -> None:
    programs = postgres_programs()
    if programs is None or not (programs / "pg_basebackup").exists():
        pytest.skip("needs PostgreSQL's programs")
    home, primary, (port,) = Home(), sandbox.event_store_server, free_ports(1)
    try:
        standby = Standby(home, programs, "standby", port, primary.password)
        standby.follow(primary)
        assert standby.is_standby
        sh(engine, LINES["promote"], STANDBY_URL=standby.url())
        assert not standby.is_standby
    finally:
        home.clear()


def test_every_name_that_a_line_for_kubernetes_gives_is_one_of_the_base() -> None:
    lines = "\n".join(line for line in PAGE.splitlines() if line.startswith("kubectl"))
    kinds = {(one["kind"].lower(), one["metadata"]["name"]) for one in manifests()}
    assert {(kind, name) for kind, name in re.findall(r"(deployment)/([\w-]+)", lines)} <= kinds
    for path in re.findall(r"shared/containers/kubernetes\S*", PAGE):
        assert (ROOT / path.rstrip("`).,")).exists(), path
    (selector,) = set(re.findall(r"--selector (\S+)", lines))
    key, _, value = selector.partition("=")
    jobs = [one for one in manifests() if one["kind"] == "Job"]
    assert jobs
    assert all(one["metadata"]["labels"][key] == value for one in jobs)
