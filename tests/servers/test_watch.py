"""`consent watch`: events as they happen, one line each."""

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chaos.links import open_wires
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_cli import CONSENT, consent
from tests.support import warm
from tests.support.amqp import Client, open_client
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually

WITHIN_S: Final = 40.0


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with open_deployment(sandbox, "watch", partitions=PARTITIONS, prepared_from=migrated) as made:
        assert made.run("command_service", "topology").returncode == 0
        made.start("command_service").wait_ready()
        yield made


@pytest.fixture
async def client(running: Deployment) -> AsyncIterator[Client]:
    async with open_client(running.rabbitmq_url, PARTITIONS) as connected:
        yield connected


class Watching:
    """A `consent watch` that runs, and what it has said so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err

    @property
    def lines(self) -> list[str]:
        """What is flushed, line by line."""
        return self._out.read_text().splitlines()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def complaints(self) -> str:
        return self._err.read_text()

    async def shows(self, text: str) -> None:
        async def shown() -> bool:
            assert self.process.poll() is None, self.complaints
            return any(text in line for line in self.lines)

        await eventually(shown, within=WITHIN_S)

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WITHIN_S)


@contextmanager
def watching(
    deployment: Deployment, folder: Path, *arguments: str, **more: str
) -> Iterator[Watching]:
    out, err = folder / "out.txt", folder / "err.txt"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = warm.Popen(
            [CONSENT, "watch", *arguments],
            env=deployment.environment(**more),
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield Watching(process, out, err)
    finally:
        process.kill()
        process.wait(10)


async def ask_until_shown(client: Client, watch: Watching, patient_id: str) -> None:
    """Ask again and again until it is seen: the watch may be connecting still."""

    async def shown() -> bool:
        assert watch.process.poll() is None, watch.complaints
        await client.command("AskConsent", patient_id)
        return any(patient_id in line for line in watch.lines)

    await eventually(shown, within=WITHIN_S, every=0.1)


async def test_from_now_on_every_event_is_a_line_for_a_person_until_ctrl_c(
    running: Deployment, client: Client, tmp_path: Path
) -> None:
    await client.command("AskConsent", "p-before")
    with watching(running, tmp_path) as watch:
        await ask_until_shown(client, watch, "p-now")
        await client.command("GrantConsent", "[red]p[/]", entity="nurse", id_="n-1")
        await client.command("RevokeConsent", "[red]p[/]", entity="nurse", id_="n-1")
        await watch.shows("[red]p[/]  revoked from nurse n-1  exams")
        assert watch.interrupt() == 0, watch.complaints
    assert any("[red]p[/]  granted to nurse n-1  exams" in line for line in watch.lines)
    assert any("p-now  asked by doctor d-1  exams" in line for line in watch.lines)
    assert not any("p-before" in line for line in watch.lines)
    assert watch.complaints == ""


async def test_from_the_origin_as_json_each_line_is_the_event_as_it_was_published(
    running: Deployment, client: Client, tmp_path: Path
) -> None:
    asked = await client.command("AskConsent", "p-json")
    with watching(running, tmp_path, "--from-origin", "--json") as watch:
        await watch.shows('"subject":"p-json"')
        assert watch.interrupt() == 0, watch.complaints
    (event,) = [one for one in watch.events if one["subject"] == "p-json"]
    assert (event["specversion"], event["id"]) == ("1.0", asked["events"][0]["id"])
    positions = [one["position"] for one in watch.events if one["partition"] == asked["partition"]]
    assert positions == list(range(1, len(positions) + 1))


async def test_a_pattern_and_a_patient_choose_what_is_shown(
    running: Deployment, client: Client, tmp_path: Path
) -> None:
    for type_ in ("AskConsent", "GrantConsent", "RevokeConsent"):
        await client.command(type_, "p-chosen")
        await client.command(type_, "p-other")
    with watching(running, tmp_path, "--from-origin", "--patient", "p-chosen") as watch:
        await watch.shows("revoked")
    assert [line.split()[2] for line in watch.lines] == ["p-chosen"] * 3

    arguments = ("granted.#", "revoked.#", "--from-origin", "--patient", "p-chosen", "--json")
    with watching(running, tmp_path, *arguments) as watch:
        await watch.shows("ConsentRevoked")
    assert [one["type"] for one in watch.events] == ["ConsentGranted", "ConsentRevoked"]


async def test_a_position_is_where_it_begins_behind(
    running: Deployment, client: Client, tmp_path: Path
) -> None:
    first, second, third = [await client.command("AskConsent", "p-behind") for _ in range(3)]
    place = f"{first['partition']}={first['events'][0]['position']}"
    with watching(running, tmp_path, "--from", place, "--json") as watch:
        await watch.shows(third["events"][0]["id"])
    assert [one["id"] for one in watch.events][:2] == [
        second["events"][0]["id"],
        third["events"][0]["id"],
    ]


async def test_a_broker_that_goes_away_is_waited_for_and_nothing_is_missed(
    running: Deployment, client: Client, tmp_path: Path
) -> None:
    with open_wires() as wires:
        link = wires.lay(running.rabbitmq_url)
        with watching(running, tmp_path, "asked.#", "--json", RABBITMQ_URL=link.url) as watch:
            await ask_until_shown(client, watch, "p-cut")
            link.cut()
            await client.command("AskConsent", "p-cut-2")
            await watch.shows("p-cut-2")
            assert watch.interrupt() == 0, watch.complaints
    versions = [one["streamversion"] for one in watch.events if one["subject"] == "p-cut"]
    assert versions == list(range(versions[0], versions[0] + len(versions)))
    assert "subscription.lost" in watch.complaints


async def test_a_pipe_that_is_closed_ends_it_quietly(running: Deployment, client: Client) -> None:
    await client.command("AskConsent", "p-pipe")
    await client.command("AskConsent", "p-pipe")
    process = warm.Popen(
        [CONSENT, "watch", "--from-origin", "--patient", "p-pipe"],
        env=running.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdout.close()
        code = process.wait(WITHIN_S)
        complaints = process.stderr.read()
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()
    assert (code, complaints) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "more", "code", "complaint"),
    [
        (("--from", "3"), {}, 2, "give PARTITION=POSITION, separated by commas"),
        (("--from", "0=-1"), {}, 2, "give PARTITION=POSITION, separated by commas"),
        (("--from", "0=999999"), {}, 2, "does not have what was taken up to 999999"),
        ((), {"CONSENT_PARTITIONS": "3"}, 2, "the deployment has not 3 partitions"),
        ((), {"RABBITMQ_URL": "amqp://u:secret@127.0.0.1:1/"}, 3, "the broker is not reached"),
    ],
)
def test_wrong_use_is_one_clear_line(
    running: Deployment,
    arguments: tuple[str, ...],
    more: dict[str, str],
    code: int,
    complaint: str,
) -> None:
    done = consent(running, "watch", *arguments, **more)
    assert done.returncode == code
    assert complaint in " ".join(done.stderr.split())
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
