"""The alerts, the dashboard and the operators' table against a real Prometheus and real workers."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.home import Home, free_ports
from tests.support.amqp import Client, open_client
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(300)

ROOT: Final = Path(__file__).parents[2]
MONITORING: Final = ROOT / "shared" / "containers" / "monitoring"
DASHBOARD: Final = MONITORING / "grafana" / "dashboards" / "consent.json"
ALERTS: Final = MONITORING / "alerts.yml"
WITHIN_S: Final = 60.0


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}, of the package prometheus")
    return found


def alerts() -> list[dict[str, Any]]:
    content = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_promtool_agrees(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *words], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways() -> None:
    tests = yaml.safe_load((MONITORING / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    named = {rule["alert"] for rule in alerts()}
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == named
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == named


class Prometheus:
    """A real one."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str) -> Any:  # noqa: ANN401 - any JSON
        with urlopen(f"{self.url}/{path}", timeout=20) as answer:  # noqa: S310 - it is http
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Give the result of a query; raises HTTPError where it does not parse."""
        found: list[dict[str, Any]] = self.get(f"query?query={quote(expression)}")["result"]
        return found

    async def scrapes(self) -> bool:
        try:
            return sum(float(one["value"][1]) for one in self.query("up")) == 2
        except OSError:
            return False


@pytest.fixture(scope="module")
def watched(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with open_deployment(sandbox, "watched", partitions=PARTITIONS, prepared_from=migrated) as made:
        done = made.run("command_service", "topology")
        assert done.returncode == 0, done.stderr
        made.start_both()
        yield made


@pytest.fixture(scope="module")
def prometheus(watched: Deployment) -> Iterator[Prometheus]:
    """Start one with the configuration that ships, but for where the workers are."""
    command = program("prometheus")
    home = Home()
    try:
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            ports = [one.http_port for one in watched.workers if one.service == job["job_name"]]
            assert job.pop("dns_sd_configs")[0]["names"] == [job["job_name"]]
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
        file = home.write("prometheus.yml", yaml.safe_dump(config))
        home.write("alerts.yml", ALERTS.read_text(encoding="utf-8"))
        (port,) = free_ports(1)
        home.launch(
            "prometheus",
            command,
            f"--config.file={file}",
            f"--storage.tsdb.path={home.make_folder('data')}",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        yield Prometheus(port)
    finally:
        home.clear()


async def some_of_everything(client: Client, patient_id: str) -> None:
    """Grant, be refused, and ask."""
    await client.command("GrantConsent", patient_id)
    await client.command("GrantConsent", patient_id)
    await client.query("ListConsents", patient_id=patient_id, min_version=1)
    await client.query("HasConsent", patient_id=patient_id, entity_name="doctor", entity_id="d-1")


async def test_every_query_of_the_dashboard_has_something_to_show(
    watched: Deployment, prometheus: Prometheus
) -> None:
    await eventually(prometheus.scrapes, within=WITHIN_S)
    queries = [one.replace("$__rate_interval", "1m") for one in dashboard_queries()]
    assert len(queries) > 30
    numbers = count()

    def empty(query: str) -> bool:
        values = [one["value"][1] for one in prometheus.query(query)]
        return not values or all(value == "NaN" for value in values)

    async with open_client(watched.rabbitmq_url, PARTITIONS) as client:

        async def all_show_something() -> bool:
            """Rates are of what happens between two scrapes: let something happen."""
            await some_of_everything(client, f"p-{next(numbers)}")
            missing = await asyncio.to_thread(lambda: [one for one in queries if empty(one)])
            print(len(missing), missing[:1])  # for whom it fails
            return not missing

        await eventually(all_show_something, within=WITHIN_S, every=0.5)


async def test_every_alert_is_evaluated_and_none_fires_while_all_is_well(
    prometheus: Prometheus,
) -> None:
    async def evaluated() -> list[dict[str, Any]]:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        known = all(rule["health"] == "ok" for rule in rules) and len(rules) == len(alerts())
        return rules if known else []

    await eventually(prometheus.scrapes, within=WITHIN_S)
    rules = await eventually(evaluated, within=WITHIN_S)
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} == set()


def test_every_metric_that_an_alert_or_the_dashboard_names_is_one_that_the_workers_have(
    watched: Deployment,
) -> None:
    named = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for text in (*dashboard_queries(), *(rule["expr"] for rule in alerts()))
        for name in re.findall(r"consent_\w+", text)
    }
    assert named <= metrics_of(watched)


def metrics_of(deployment: Deployment) -> set[str]:
    """Name every metric that the workers have, whether or not it has been counted yet."""
    return {
        line.split()[2]
        for worker in deployment.workers
        for line in worker.get("/metrics")[1].splitlines()
        if line.startswith("# TYPE consent_") and not line.split()[2].endswith("_created")
    }


def test_the_operators_table_of_metrics_is_complete_and_names_nothing_else(
    watched: Deployment,
) -> None:
    page = (ROOT / "shared" / "containers" / "README.md").read_text(encoding="utf-8")
    section = page.split("## Metrics and health\n")[1].split("\n## ")[0]
    assert set(re.findall(r"`(consent_\w+)`", section)) == metrics_of(watched)


@pytest.mark.parametrize("reason", ["forged", "not_a_reply_queue", "no_room"])
def test_lost_replies_are_counted_from_nought_so_that_the_first_is_an_increase(
    watched: Deployment, reason: str
) -> None:
    for worker in watched.workers:
        lines = worker.get("/metrics")[1].splitlines()
        assert any(f'consent_replies_lost_total{{reason="{reason}"}} ' in line for line in lines)


async def test_no_metric_bears_a_patients_or_a_doctors_id(watched: Deployment) -> None:
    async with open_client(watched.rabbitmq_url, PARTITIONS) as client:
        await some_of_everything(client, "p-planted")
    for worker in watched.workers:
        told = worker.get("/metrics")[1]
        assert "consent_ready" in told
        assert "p-planted" not in told
        assert "d-1" not in told
