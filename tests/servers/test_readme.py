"""The README's examples run as they stand, and the verbs that it names exist."""

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from command_service.settings import CommandSettings
from projection_service.settings import ProjectionSettings
from shared.settings import WorkerSettings
from tests.programs.command_lines import verbs
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.javascript import NoNode, node_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRACT = (ROOT / "shared/contract/README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / path
    for path in (
        "README.md",
        "shared/contract/README.md",
        "shared/containers/README.md",
        "shared/cli/README.md",
        "tests/README.md",
        "tests/bench/README.md",
    )
]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
LARGEST_README = 16 * 1024


def example(name: str, page: str = README) -> str:
    found = re.search(rf"<!-- test: {re.escape(name)} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert found, f"the page has no example {name}"
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


@pytest.fixture
def amqplib(tmp_path: Path) -> Path:
    """Make a folder where scripts find amqplib."""
    try:
        packages = node_folder() / "node_modules"
    except NoNode as why:
        pytest.skip(str(why))
    (tmp_path / "node_modules").symlink_to(packages)
    return tmp_path


async def test_the_publisher_in_javascript_gets_the_same_replies(
    running: Deployment, amqplib: Path
) -> None:
    if subprocess.run(
        ["node", "-e", "process.exit(+!require('zlib').crc32)"], check=False
    ).returncode:
        pytest.skip("needs Node 20.15 or newer")
    script = amqplib / "publish.mjs"
    script.write_text(example("publish.mjs"))

    def run() -> dict[str, object]:
        done = subprocess.run(
            ["node", script],
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


async def test_the_ward_list_gets_an_answer_for_each_patient(
    running: Deployment, client: Client, tmp_path: Path
) -> None:
    granted = await client.command("GrantConsent", "p-1", target="exams")
    await client.query("ListConsents", patient_id="p-1", min_version=granted["version"])
    script = tmp_path / "ward.py"
    script.write_text(example("ward.py"))
    done = subprocess.run(
        [sys.executable, script],
        env=running.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "p-1 yes\np-2 no\n"


async def test_the_subscriber_in_javascript_tells_of_a_request(
    running: Deployment, client: Client, amqplib: Path
) -> None:
    script = amqplib / "subscribe.mjs"
    script.write_text(example("subscribe.mjs", CONTRACT))
    out = amqplib / "out.txt"
    with out.open("w") as stream:
        process = subprocess.Popen(
            ["node", script], cwd=amqplib, env=running.environment(), stdout=stream
        )
    try:
        await eventually(lambda: _says(out, "waiting for requests"), within=60)
        await client.command("AskConsent", "p-1", target="exams")
        await eventually(lambda: _says(out, "p-1: doctor d-1 asks for exams"))
    finally:
        process.kill()
        process.wait(10)


async def test_the_subscriber_in_python_tells_each_patient_once_though_it_is_killed(
    running: Deployment, client: Client, tmp_path: Path
) -> None:
    script, out = tmp_path / "tell_patients.py", tmp_path / "out.txt"
    script.write_text(example("tell_patients.py"))
    for patient in ("p-1", "p-2", "p-3"):
        await client.command("AskConsent", patient, target="exams")

        async def told(patient: str = patient) -> bool:
            return await _says(out, f"{patient}: doctor d-1 asks to see your exams")

        with out.open("a") as stream:
            process = subprocess.Popen(
                [sys.executable, script], cwd=tmp_path, env=running.environment(), stdout=stream
            )
        try:
            await eventually(told, within=40)
        finally:
            process.kill()
            process.wait(10)
    letters = sqlite3.connect(tmp_path / "patients.db")
    rows = letters.execute("SELECT patient FROM letters ORDER BY rowid").fetchall()
    letters.close()
    assert rows == [("p-1",), ("p-2",), ("p-3",)]
    assert out.read_text().count("asks to see") == len(rows)


async def _says(out: Path, text: str) -> bool:
    return text in out.read_text()


def test_the_readme_is_for_a_stranger_and_its_pages_exist() -> None:
    assert len(README.encode()) <= LARGEST_README
    for page in PAGES:
        links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == []
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\((?!https?:)([^)#]+)", README)}
    assert set(PAGES[1:]) <= linked


def test_every_file_that_the_reading_order_names_is_there() -> None:
    named = re.findall(r"`((?:shared|command_service|projection_service)/[\w/]+\.py)`", TEXT)
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_setting_of_the_workers_is_in_the_table() -> None:
    for kind in (WorkerSettings, CommandSettings, ProjectionSettings):
        for name in kind.model_fields:
            assert f"`{name.upper()}`" in TEXT


def test_every_verb_that_the_text_names_is_one_of_make() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    verbs = set(re.findall(r"^  make (\w+)", listed, re.MULTILINE))
    named = set(re.findall(r"`?\bmake ([a-z]+)\b", TEXT)) - {"alone"}
    assert {"demo", "test", "up", "check", "bench", "lock"} <= named <= verbs


def test_every_command_line_that_the_text_shows_exists() -> None:
    known = [f"{verb.words} " for verb in verbs()]
    for shown in re.findall(r"python -m \w+_service [\w-]+", TEXT):
        assert any(words.startswith(f"{shown} ") for words in known), shown
