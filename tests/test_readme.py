"""The README's examples run as they stand, and the verbs that it names exist."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from command_service.settings import CommandSettings
from projection_service.settings import ProjectionSettings
from shared.settings import WorkerSettings
from tests.amqp import Client
from tests.deployment import Deployment
from tests.eventually import eventually

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    found = re.search(rf"<!-- test: {re.escape(name)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no example {name}"
    return found[1]


@pytest.fixture
def running(deployment: Deployment) -> Deployment:
    deployment.start_both()
    return deployment


async def test_the_publisher_gets_the_replies_that_the_text_promises(
    running: Deployment, tmp_path: Path
) -> None:
    script = tmp_path / "publish.py"
    script.write_text(example("publish.py"))

    def run() -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, script],
            env=running.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        reply: dict[str, object] = json.loads(done.stdout)
        return reply

    first, second = run(), run()
    assert (first["status"], first["version"]) == ("accepted", 1)
    assert (second["status"], second["error"]) == ("rejected", "consent_already_granted")


@pytest.fixture(scope="module")
def amqplib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("node")
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "amqplib"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        pytest.skip("npm can't install amqplib here")
    return folder


async def test_the_subscriber_in_javascript_tells_of_a_request(
    running: Deployment, client: Client, amqplib: Path
) -> None:
    script = amqplib / "subscribe.mjs"
    script.write_text(example("subscribe.mjs"))
    out = amqplib / "out.txt"
    with out.open("w") as stream:
        process = subprocess.Popen(
            ["node", script], cwd=amqplib, env=running.environment(), stdout=stream
        )
    try:
        await eventually(lambda: _says(out, "waiting for requests"))
        await client.command("AskConsent", "p-1", target="exams")
        await eventually(lambda: _says(out, "p-1: doctor d-1 asks for exams"))
    finally:
        process.kill()
        process.wait(10)


async def _says(out: Path, text: str) -> bool:
    return text in out.read_text()


def test_every_setting_of_the_workers_is_in_the_table() -> None:
    for kind in (WorkerSettings, CommandSettings, ProjectionSettings):
        for name in kind.model_fields:
            assert f"`{name.upper()}`" in README


def test_every_verb_that_the_text_names_is_one_of_make() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    verbs = set(re.findall(r"^  make (\w+)", listed, re.MULTILINE))
    named = set(re.findall(r"`?\bmake ([a-z]+)\b", README)) - {"alone"}
    assert {"demo", "test", "up", "check", "bench", "lock"} <= named <= verbs


def test_every_command_line_that_the_text_shows_exists() -> None:
    for service, verb in re.findall(r"python -m (\w+_service) (\w+)", README):
        done = subprocess.run(
            [sys.executable, "-m", service, verb, "--help"], capture_output=True, check=False
        )
        assert done.returncode == 0, (service, verb)
