"""compose.yaml and the Dockerfile, as far as that goes without an engine: every command is run."""

import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from shared.worker.health_check import health_check
from shared.worker.process import DRAIN_S
from tests.sandbox import Sandbox
from tests.sandbox.home import free_ports
from tests.sandbox.install import postgres_programs
from tests.sandbox.servers import USER, DatabaseServer
from tests.support.compose import FILE, PROGRAMS, ROOT, Uncontained, read_compose
from tests.support.deployment import Worker
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(300)

VHOST: Final = "compose"
WORKERS: Final = ("command_service", "projection_service")
JOBS: Final = ("broker_users", "migrate_event_store", "migrate_read_model", "topology")
ROLES: Final = ("consent_worker", "consent_owner")
BROKER_USERS: Final = ("operator", "topology", "command-worker", "projection-worker", "console")


@pytest.fixture(scope="module")
def uncontained(
    sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Uncontained]:
    """Prepare the sandbox as the containers' own start scripts prepare the servers."""
    folder = tmp_path_factory.mktemp("compose")
    broker, stores = sandbox.broker, (sandbox.event_store_server, sandbox.read_model_server)
    replaced = {
        "rabbitmq:5672/": f"{broker.host}:{broker.port}/{VHOST}",
        "event_store:5432": f"{stores[0].host}:{stores[0].port}",
        "read_model:5432": f"{stores[1].host}:{stores[1].port}",
        "/definitions/": f"{folder}/",
    }
    made = Uncontained(read_compose()["services"], replaced)
    for server, name in zip(stores, ("event_store", "read_model"), strict=True):
        create_roles(made, server, name)
    done = made.run("broker_users")
    assert done.returncode == 0, done.stderr
    broker.api("POST", "/definitions", json.loads((folder / "definitions.json").read_text()))
    yield made
    broker.delete_vhost(VHOST)
    for user in BROKER_USERS:
        broker.api("DELETE", f"/users/{user}")
    for server, name in zip(stores, ("event_store", "read_model"), strict=True):
        server.drop_database(name)
        for role in ROLES:
            server.execute(f"DROP ROLE {role}")


def create_roles(made: Uncontained, server: DatabaseServer, name: str) -> None:
    """Run the script that PostgreSQL's image runs when the server is first started."""
    programs = postgres_programs()
    psql = shutil.which("psql") or (programs and shutil.which("psql", path=str(programs)))
    if psql is None:
        pytest.skip("needs psql")
    server.create_database(name)
    mounted = [one for one in made.services[name]["volumes"] if "/docker-entrypoint" in one]
    script = ROOT / mounted[0].split(":")[0]
    done = subprocess.run(
        ["sh", script],
        env={
            **made.environment(name, POSTGRES_USER=USER),
            "PATH": f"{Path(psql).parent}:/usr/bin:/bin",
            "PGHOST": server.host,
            "PGPORT": str(server.port),
            "PGPASSWORD": server.password,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(uncontained: Uncontained) -> Uncontained:
    """Run the one-shot jobs; each may run again at every start."""
    for job in JOBS[1:]:
        for _ in range(2):
            done = uncontained.run(job)
            assert done.returncode == 0, (job, done.stderr)
    return uncontained


def start(made: Uncontained, service: str, folder: Path) -> Worker:
    (port,) = free_ports(1)
    log_file = folder / f"{service}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            made.words(service),
            env=made.environment(service, HTTP_PORT=str(port)),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Worker(service, process, port, log_file)  # type: ignore[arg-type] # by its name


async def test_every_command_works_under_the_users_and_in_the_environment_of_the_file(
    prepared: Uncontained, tmp_path: Path
) -> None:
    workers = [start(prepared, service, tmp_path) for service in WORKERS]
    try:
        for worker in workers:
            worker.wait_ready(within=60)
            await eventually(has_looked(worker), within=60)

        async def granted() -> bool:
            done = prepared.run("consent", "grant", "p-1", "doctor", "d-1", "exams")
            assert done.returncode in {0, 1}, done.stderr
            return prepared.run("consent", "check", "p-1", "doctor", "d-1", "exams").returncode == 0

        await eventually(granted, within=30)
        assert prepared.run("consent").returncode == 0  # its help
        for worker in workers:
            assert worker.stop() == 0, worker.log
            assert "permission denied" not in worker.log
            assert health(worker).returncode == 1
    finally:
        for worker in workers:
            worker.process.send_signal(signal.SIGKILL)


def has_looked(worker: Worker) -> Callable[[], Awaitable[bool]]:
    """Whether its observer may see all that it must, and the health check is content."""

    async def look() -> bool:
        everywhere = ("broker", "database", "log" if "projection" in worker.service else "broker")
        seen = [worker.metric("consent_last_look_timestamp_seconds", at) for at in everywhere]
        return all(seen) and health(worker).returncode == 0

    return look


def health(worker: Worker) -> "subprocess.CompletedProcess[str]":
    """Run the image's health check, as it would run beside the worker."""
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])", dockerfile(), re.DOTALL)
    assert found
    environment = {"PATH": str(PROGRAMS), "HTTP_PORT": str(worker.http_port)}
    return subprocess.run(
        json.loads(found[1]), env=environment, capture_output=True, text=True, check=False
    )


def test_the_health_check_says_what_is_missing_and_knows_when_nobody_serves() -> None:
    (port,) = free_ports(1)
    assert health_check(port)[0] is False
    assert f"no answer on port {port}" in health_check(port)[1]


def test_the_administrator_is_the_only_user_with_a_tag_and_no_password_is_in_the_file(
    uncontained: Uncontained, sandbox: Sandbox
) -> None:
    users = {user["name"]: user for user in sandbox.broker.api("GET", "/users")}
    tags = {name: users[name]["tags"] for name in BROKER_USERS}
    assert [name for name, found in tags.items() if found] == ["operator"]
    written = Path(uncontained.here("/definitions/") + "definitions.json").read_text()
    assert "demo-" not in written


def test_a_user_without_a_password_or_with_an_unknown_role_is_one_clear_line(
    uncontained: Uncontained,
) -> None:
    for words, complaint in (
        (["nobody=asker"], "error: PASSWORD_NOBODY is not set: give nobody a password"),
        (["clinic=king"], "error: 'clinic=king' must be NAME=ROLE[,ROLE…] with roles of topology"),
    ):
        command = ["python", "-m", "command_service", "definitions", "--output=/dev/null", *words]
        done = uncontained.run("broker_users", *command)
        assert done.returncode == 2
        assert done.stderr.startswith(complaint)
        assert len(done.stderr.splitlines()) == 1


def services(kind: str = "") -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = read_compose()["services"]
    return {name: one for name, one in made.items() if not kind or one.get("image") == kind}


def test_what_runs_our_image_can_write_nothing_and_has_no_capability() -> None:
    assert set(services("consent")) == {*JOBS, *WORKERS, "consent"}
    for one in services("consent").values():
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]


def test_the_workers_can_be_scaled_and_have_the_time_to_drain() -> None:
    for name in WORKERS:
        one = services()[name]
        assert not {"ports", "container_name", "hostname"} & set(one)
        assert int(one["stop_grace_period"].removesuffix("s")) > DRAIN_S


def test_nothing_starts_before_what_it_needs_is_well() -> None:
    """A job is waited for until it is done, a server until it is healthy."""
    made = services()
    for name, one in made.items():
        wanted = one.get("depends_on", {})
        for other, how in wanted.items() if isinstance(wanted, dict) else ():
            job = "service_completed_successfully" if other in JOBS else "service_healthy"
            assert how == {"condition": job}, (name, other)
            assert other in JOBS or "healthcheck" in made[other]
    assert set(made["command_service"]["depends_on"]) == {"migrate_event_store", "topology"}
    assert set(made["projection_service"]["depends_on"]) == {"migrate_read_model", "topology"}


def test_every_password_comes_from_a_variable_whose_default_is_marked_as_a_demonstration() -> None:
    text = FILE.read_text(encoding="utf-8")
    plain = {**dict.fromkeys(re.findall(r"\$\{(\w+)", text), "SECRET"), "CONSENT_PARTITIONS": "8"}
    for name, one in read_compose(**plain)["services"].items():
        for variable, value in one.get("environment", {}).items():
            if "PASSWORD" in variable:
                assert value == "SECRET", (name, variable)
            elif "://" in str(value):
                assert urlsplit(value).password in {"SECRET", None}, (name, variable)
    for variable, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        assert variable == "CONSENT_PARTITIONS" or default.startswith("demo-")


def test_every_key_is_one_that_compose_knows() -> None:
    """So that a slip of the pen is seen where there is no engine."""
    known = (
        "build cap_drop command depends_on entrypoint environment healthcheck hostname image init "
        "ports profiles read_only restart security_opt stop_grace_period tmpfs user volumes"
    )
    for name, one in services().items():
        assert not set(one) - set(known.split()), name


def test_every_file_and_volume_that_is_mounted_exists() -> None:
    named = set(read_compose()["volumes"])
    for one in services().values():
        for volume in one.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in named or (ROOT / source).exists(), volume


def test_the_file_is_what_compose_understands() -> None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        version = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
        if version.returncode == 0 and " 1." not in version.stdout.splitlines()[0]:
            words = [*command, "--file", str(FILE), "--profile=*", "config", "--quiet"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return
    pytest.skip("needs docker compose")


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


def steps(verb: str) -> list[str]:
    joined = dockerfile().replace("\\\n", " ")
    return re.findall(rf"^{verb} (.*)$", joined, re.MULTILINE)


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        word for step in steps("COPY") if "--from" not in step for word in shlex.split(step)[:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    assert "*" in ignored


def test_the_image_runs_as_nobody_in_particular_and_installs_only_what_is_locked() -> None:
    assert steps("USER") == ["10001:10001"]
    installs = [step for step in steps("RUN") if "pip install" in step]
    assert installs
    assert all("--require-hashes" in one or "--no-deps" in one for one in installs)


PIN: Final = re.compile(r"^(\S+==\S+)(?: ; .*?)? \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)


def test_the_images_lock_is_a_part_of_the_lock_that_the_tests_run_with() -> None:
    """Where it is not: `make lock`."""
    image, everything = (
        dict(PIN.findall((ROOT / name).read_text(encoding="utf-8")))
        for name in ("requirements-image.lock", "requirements.lock")
    )
    assert len(image) > 20
    assert image.items() <= everything.items()
