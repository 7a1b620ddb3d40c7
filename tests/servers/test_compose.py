"""compose.yaml and the Dockerfile, as far as that goes without an engine: every command is run."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from shared.worker.health_check import health_check
from shared.worker.process import DRAIN_S
from tests.sandbox import Sandbox
from tests.sandbox.home import free_ports
from tests.sandbox.servers import USER, Broker, DatabaseServer
from tests.support import warm
from tests.support.compose import FILE, PROGRAMS, ROOT, Uncontained, read_compose
from tests.support.deployment import Worker
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(300)

VHOST: Final = "compose"
WORKERS: Final = ("command_service", "projection_service")
CHECK: Final = ("python", "-m", "command_service", "check")
ROLE_JOBS: Final = ("event_store_roles", "read_model_roles")
JOBS: Final = ("broker_users", "migrate_event_store", "migrate_read_model", "topology")
"""Of our own image; each may run again at every `up`."""
SERVERS: Final = ("rabbitmq", "event_store", "read_model")
ROLES: Final = ("consent_worker", "consent_owner")
OPERATOR: Final = "operator"
BROKER_USERS: Final = ("topology", "command-worker", "projection-worker", "console")


@pytest.fixture(scope="module")
def uncontained(
    sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Uncontained]:
    """Prepare the sandbox as the servers' images do when they are first started."""
    broker, stores = sandbox.broker, (sandbox.event_store_server, sandbox.read_model_server)
    replaced = {
        "rabbitmq:5672/": f"{broker.host}:{broker.port}/{VHOST}",
        "rabbitmq:15672": f"{broker.host}:{broker.management_port}",
        "event_store:5432": f"{stores[0].host}:{stores[0].port}",
        "read_model:5432": f"{stores[1].host}:{stores[1].port}",
    }
    made = Uncontained(read_compose()["services"], replaced)
    names = ("event_store", "read_model")
    for server, name in zip(stores, names, strict=True):
        server.create_database(name)
    become_operator(made, broker)
    yield made
    broker.delete_vhost(VHOST)
    for user in (OPERATOR, *BROKER_USERS):
        broker.api("DELETE", f"/users/{user}")
    for server, name in zip(stores, names, strict=True):
        server.drop_database(name)
        for role in ROLES:
            server.execute(f"DROP ROLE IF EXISTS {role}")


def become_operator(made: Uncontained, broker: Broker) -> None:
    """Make the administrator, as the broker's image does from its environment."""
    given = made.services["rabbitmq"]["environment"]
    assert given["RABBITMQ_DEFAULT_USER"] == OPERATOR
    user = {"password": given["RABBITMQ_DEFAULT_PASS"], "tags": "administrator"}
    broker.api("PUT", f"/users/{OPERATOR}", user)
    broker.create_vhost(VHOST)
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.api("PUT", f"/permissions/{VHOST}/{OPERATOR}", everything)


def set_roles(made: Uncontained, server: DatabaseServer, job: str) -> None:
    """Run the job that makes a database's roles and sets their passwords."""
    login = {"PGUSER": USER, "PGPASSWORD": server.password}
    done = made.run_roles(job, PGHOST=server.host, PGPORT=str(server.port), **login)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(uncontained: Uncontained, sandbox: Sandbox) -> Uncontained:
    """Run the one-shot jobs; each may run again at every start."""
    for _ in range(2):
        set_roles(uncontained, sandbox.event_store_server, "event_store_roles")
        set_roles(uncontained, sandbox.read_model_server, "read_model_roles")
        for job in JOBS:
            done = uncontained.run(job)
            assert done.returncode == 0, (job, done.stderr)
    return uncontained


def start(made: Uncontained, service: str, folder: Path) -> Worker:
    (port,) = free_ports(1)
    log_file = folder / f"{service}.log"
    with log_file.open("wb") as log:
        process = warm.Popen(
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


def test_the_administrator_is_the_only_user_with_a_tag(
    prepared: Uncontained, sandbox: Sandbox
) -> None:
    assert prepared.services
    users = {user["name"]: user for user in sandbox.broker.api("GET", "/users")}
    tags = {name: users[name]["tags"] for name in (OPERATOR, *BROKER_USERS)}
    assert [name for name, found in tags.items() if found] == [OPERATOR]


def test_an_operators_verbs_run_from_a_service_of_their_own(prepared: Uncontained) -> None:
    for words in (
        ("command_service", "receipts", "purge", "--older-than=90d", "--dry-run"),
        ("projection_service", "history", "purge", "--older-than=10y", "--dry-run"),
        ("projection_service", "parked", "list"),
        ("command_service", "topology"),
    ):
        done = prepared.run("admin", *words)
        assert done.returncode == 0, (words, done.stderr)


def test_a_changed_password_holds_once_the_jobs_ran_again(
    prepared: Uncontained, sandbox: Sandbox
) -> None:
    """Nothing is started anew for it, neither the broker nor a database."""
    changed = {
        name: f"changed-{number}"
        for number, name in enumerate(
            ("COMMAND_WORKER_PASSWORD", "DATABASE_WORKER_PASSWORD", "DATABASE_OWNER_PASSWORD")
        )
    }
    after = Uncontained(read_compose(**changed)["services"], prepared.replaced)
    refused = after.run("migrate_event_store")
    assert refused.returncode == 2
    assert "refuses the login" in refused.stderr
    try:
        for job, server in zip(ROLE_JOBS, stores(sandbox), strict=True):
            set_roles(after, server, job)
        for job in JOBS:
            done = after.run(job)
            assert done.returncode == 0, (job, done.stderr)
        done = after.run("command_service", *CHECK)
        assert "✓ leases" in done.stdout, done.stdout
        assert "refuses the login" in prepared.run("command_service", *CHECK).stdout
    finally:
        for job, server in zip(ROLE_JOBS, stores(sandbox), strict=True):
            set_roles(prepared, server, job)
        assert prepared.run("broker_users").returncode == 0


def stores(sandbox: Sandbox) -> tuple[DatabaseServer, DatabaseServer]:
    return sandbox.event_store_server, sandbox.read_model_server


def test_a_user_without_a_password_or_with_an_unknown_role_is_one_clear_line(
    uncontained: Uncontained,
) -> None:
    for words, complaint in (
        (["nobody=asker"], "error: PASSWORD_NOBODY is not set: give nobody a password"),
        (["clinic=king"], "error: 'clinic=king' must be NAME=ROLE[,ROLE…] with roles of topology"),
    ):
        command = ["python", "-m", "command_service", "definitions", *words]
        done = uncontained.run("broker_users", *command)
        assert done.returncode == 2
        assert done.stderr.startswith(complaint)
        assert len(done.stderr.splitlines()) == 1


def services(kind: str = "") -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = read_compose()["services"]
    return {name: one for name, one in made.items() if not kind or one.get("image") == kind}


def test_what_runs_our_image_can_write_nothing_and_has_no_capability() -> None:
    ours = services("consent:local")
    assert set(ours) == {*JOBS, *WORKERS, "consent", "admin"}
    for one in [*ours.values(), *(services()[job] for job in ROLE_JOBS)]:
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]


def test_one_service_builds_the_image_that_all_use() -> None:
    """Each build makes an image of its own: with several, all but one service would be replaced."""
    assert [name for name, one in services().items() if "build" in one] == ["broker_users"]


def test_the_servers_depend_on_nothing_of_ours_which_an_upgrade_replaces() -> None:
    for name in SERVERS:
        assert "depends_on" not in services()[name]


def test_the_health_check_stands_in_the_file_too_for_engines_that_ignore_the_images() -> None:
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])", dockerfile(), re.DOTALL)
    assert found
    for name in WORKERS:
        assert services()[name]["healthcheck"]["test"] == ["CMD", *json.loads(found[1])]


def test_no_log_grows_without_end_and_every_server_has_the_time_to_stop_well() -> None:
    for name, one in services().items():
        assert {"max-size", "max-file"} <= set(one["logging"]["options"]), name
    for name in SERVERS:
        assert services()[name]["stop_grace_period"] == "2m"


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
            is_job = other in {*JOBS, *ROLE_JOBS}
            until = "service_completed_successfully" if is_job else "service_healthy"
            assert how == {"condition": until}, (name, other)
            assert is_job or "healthcheck" in made[other]
    assert set(made["command_service"]["depends_on"]) == {"migrate_event_store", "topology"}
    assert set(made["projection_service"]["depends_on"]) == {"migrate_read_model", "topology"}


def test_every_password_comes_from_a_variable_whose_default_is_marked_as_a_demonstration() -> None:
    text = FILE.read_text(encoding="utf-8")
    plain = dict.fromkeys(re.findall(r"\$\{(\w+PASSWORD)", text), "SECRET")
    for name, one in read_compose(**plain)["services"].items():
        for variable, value in one.get("environment", {}).items():
            if "PASS" in variable:
                assert value == "SECRET", (name, variable)
            elif "://" in str(value):
                assert urlsplit(value).password in {"SECRET", None}, (name, variable)
    for variable, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        assert ("PASSWORD" in variable) == default.startswith("demo-"), variable


def test_every_key_is_one_that_compose_knows() -> None:
    """So that a slip of the pen is seen where there is no engine."""
    known = (
        "build cap_drop command depends_on entrypoint environment healthcheck hostname image init "
        "logging mem_limit ports profiles read_only restart security_opt shm_size "
        "stop_grace_period stop_signal tmpfs user volumes"
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
    image, build, everything = map(
        pins, ("requirements-image.lock", "requirements-build.lock", "requirements.lock")
    )
    assert len(image) > 20
    assert image.items() <= everything.items()
    assert build.items() <= everything.items()
    names = {pin.partition("==")[0] for pin in image}
    assert names.isdisjoint({"hatchling", "pip", "setuptools", "wheel"})


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / name).read_text(encoding="utf-8")))


def test_the_images_label_has_the_packages_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"VERSION={project['version']}" in steps("ARG")
