"""The Kustomize base: built, held against schemas, and each container's command run."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml

from shared.worker.process import DRAIN_S
from tests.sandbox import Sandbox
from tests.sandbox.home import free_ports
from tests.sandbox.servers import DatabaseServer
from tests.support import warm
from tests.support.deployment import Worker
from tests.support.eventually import eventually
from tests.support.kubernetes import BASE, Uncontained, kustomization, made_secrets, of_kind

pytestmark = pytest.mark.timeout(300)

VHOST: Final = "kubernetes"
ADMINISTRATOR: Final = {"username": "default_user_of_kubernetes", "password": "generated"}
USERS: Final = ("topology", "command-worker", "projection-worker", "autoscaler")
JOBS: Final = ("broker-users", "migrate-event-store", "topology", "migrate-read-model")
WORKERS: Final = {"command-service": "command_service", "projection-service": "projection_service"}
DATABASES: Final = {"event-store": "event_store", "read-model": "read_model"}
OWNER: Final = "of-the-schema"


@pytest.fixture(scope="module")
def uncontained(
    sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Uncontained]:
    """Prepare the sandbox as the operators of RabbitMQ and PostgreSQL do."""
    broker, secrets = sandbox.broker, made_secrets()
    replaced = {
        "rabbitmq:5672/": f"{broker.host}:{broker.port}/{VHOST}",
        "rabbitmq:15672": f"{broker.host}:{broker.management_port}",
    }
    servers = dict(
        zip(DATABASES, (sandbox.event_store_server, sandbox.read_model_server), strict=True)
    )
    for cluster, server in servers.items():
        replaced[f"{cluster}-rw:5432"] = f"{server.host}:{server.port}"
        make_database(server, DATABASES[cluster], secrets[f"{cluster}-worker"]["password"])
        uri = f"postgresql://consent_owner:{OWNER}@{cluster}-rw:5432/{DATABASES[cluster]}"
        secrets[f"{cluster}-app"] = {"uri": uri}
    secrets["rabbitmq-default-user"] = ADMINISTRATOR
    user = {"password": ADMINISTRATOR["password"], "tags": "administrator"}
    broker.api("PUT", f"/users/{ADMINISTRATOR['username']}", user)
    yield Uncontained(tmp_path_factory.mktemp("secrets"), secrets, replaced)
    broker.delete_vhost(VHOST)
    for name in (ADMINISTRATOR["username"], *USERS):
        broker.api("DELETE", f"/users/{name}")
    for cluster, server in servers.items():
        server.drop_database(DATABASES[cluster])
        for role in ("consent_worker", "consent_owner"):
            server.execute(f"DROP ROLE {role}")


def make_database(server: DatabaseServer, name: str, worker_password: str) -> None:
    server.execute(f"CREATE ROLE consent_owner LOGIN PASSWORD '{OWNER}'")
    server.execute(f"CREATE ROLE consent_worker LOGIN PASSWORD '{worker_password}'")
    server.create_database(name)
    server.execute(f"ALTER DATABASE {name} OWNER TO consent_owner")


def start(made: Uncontained, name: str, folder: Path) -> Worker:
    (port,) = free_ports(1)
    log_file = folder / f"{name}.log"
    with log_file.open("wb") as log:
        process = warm.Popen(
            made.words(name),
            env=made.environment(name, HTTP_PORT=str(port)),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Worker(WORKERS[name], process, port, log_file)  # type: ignore[arg-type] # by its name


async def test_every_containers_command_works_with_its_secrets_in_its_environment(
    uncontained: Uncontained, sandbox: Sandbox, tmp_path: Path
) -> None:
    for job in JOBS:
        for _ in range(2):
            done = uncontained.run(job)
            assert done.returncode == 0, (job, done.stderr)
    workers = [start(uncontained, name, tmp_path) for name in WORKERS]
    try:
        for worker in workers:
            worker.wait_ready()

        async def seen() -> bool:
            looks = [w.metric("consent_last_look_timestamp_seconds", "broker") for w in workers]
            return all(looks)

        await eventually(seen, within=60)
        for worker in workers:
            assert worker.stop() == 0, worker.log
            assert "permission denied" not in worker.log
    finally:
        for worker in workers:
            worker.process.send_signal(signal.SIGKILL)
    users = {one["name"]: one["tags"] for one in sandbox.broker.api("GET", "/users")}
    assert [users[name] for name in USERS] == [[], [], [], ["monitoring"]]


def test_no_password_is_in_an_environment() -> None:
    for pod in pods():
        for container in pod["containers"]:
            for variable in container["env"]:
                source = variable.get("valueFrom", {}).get("secretKeyRef", {"key": "username"})
                assert source["key"] == "username"
                assert urlsplit(variable.get("value", "")).password is None


def pods() -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in of_kind("Job", "Deployment")]


def test_every_pod_can_write_nothing_and_has_no_right() -> None:
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_workers_are_probed_have_the_time_to_drain_and_leave_one_at_a_time() -> None:
    budgets = {one["metadata"]["name"]: one["spec"] for one in of_kind("PodDisruptionBudget")}
    for one in of_kind("Deployment"):
        pod, name = one["spec"]["template"]["spec"], one["metadata"]["name"]
        assert pod["terminationGracePeriodSeconds"] > DRAIN_S
        (container,) = pod["containers"]
        kinds = ("startup", "liveness", "readiness")
        probes = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in kinds]
        assert probes == ["/health/live", "/health/live", "/health/ready"]
        assert budgets[name]["maxUnavailable"] == 1
        assert budgets[name]["selector"] == one["spec"]["selector"]
        assert "replicas" not in one["spec"], "KEDA decides"


def test_there_are_as_many_workers_as_partitions_at_most() -> None:
    (generated,) = kustomization()["configMapGenerator"]
    partitions = int(dict(one.split("=") for one in generated["literals"])["CONSENT_PARTITIONS"])
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one["spec"] for one in of_kind("ScaledObject")}
    assert set(scaled) == set(WORKERS)
    for one in scaled.values():
        assert one["maxReplicaCount"] == partitions
        assert one["minReplicaCount"] >= 2


def test_prometheus_sees_the_workers_by_the_labels_that_alerts_know() -> None:
    found = {
        one["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]: one["spec"][
            "podMetricsEndpoints"
        ][0]["relabelings"][0]["replacement"]
        for one in of_kind("PodMonitor")
    }
    assert found == {**WORKERS, "rabbitmq": "rabbitmq"}


def built() -> list[dict[str, Any]]:
    """Build the base by Kustomize."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", BASE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_kustomize_builds_it_with_one_configuration_for_all() -> None:
    made = built()
    kinds = [one["kind"] for one in made]
    assert {kind: kinds.count(kind) for kind in ("Deployment", "Job", "ConfigMap")} == {
        "Deployment": 2,
        "Job": 4,
        "ConfigMap": 1,
    }
    (configuration,) = (one["metadata"]["name"] for one in made if one["kind"] == "ConfigMap")
    for one in made:
        if one["kind"] in {"Job", "Deployment"}:
            (container,) = one["spec"]["template"]["spec"]["containers"]
            assert container["envFrom"] == [{"configMapRef": {"name": configuration}}]
        if one["kind"] != "Namespace":
            assert one["metadata"]["namespace"] == "consent"


def test_what_is_kubernetes_own_is_as_its_schemas_want_it() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    checked = 0
    for one in built():
        if "." not in one["apiVersion"].split("/")[0] or "k8s.io" in one["apiVersion"]:
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
            checked += 1
    assert checked > 8
