"""A mirror: the same answers without a round trip, or none, whatever dies or is away."""

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, product
from math import inf
from pathlib import Path
from typing import Any, Final

import pytest

from shared.client import ConsentClient, ConsentMirror, Stale
from shared.errors import LogSetBack
from shared.values.vocabulary import RECORD_TYPES, Target
from tests.chaos.links import Disorder, open_wires
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support import next_version
from tests.support.amqp import Client, Json, body_of, open_client
from tests.support.backups import Backup
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch, flood, log_size, projected, replies

WITHIN_S: Final = 40.0
FRESH_S: Final = 10.0
EVERY_S: Final = 0.1
Key = tuple[str, str, str]
Types = set[str]


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    """One deployment for the module; each test has patients and a file of its own."""
    with open_deployment(sandbox, "mirrors", partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        made.start_both()
        yield made


@pytest.fixture
async def client(running: Deployment) -> Any:  # noqa: ANN401
    async with open_client(running.rabbitmq_url, PARTITIONS) as connected:
        yield connected


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mirror.db"


@contextmanager
def mirrored(deployment: Deployment, path: Path, **more: Any) -> Iterator[ConsentMirror]:  # noqa: ANN401
    url = more.pop("url", deployment.rabbitmq_url)
    options: dict[str, Any] = {"partitions": PARTITIONS, "look_every": EVERY_S}
    with ConsentMirror(url, path, **(options | more)) as mirror:
        yield mirror


async def answer(mirror: ConsentMirror, patient_id: str, permission: Target = "exams") -> bool:
    """Ask whether doctor d-1 may, once the mirror knows enough to say so."""

    async def known() -> list[bool]:
        try:
            return [mirror.has_consent(patient_id, "doctor", "d-1", permission)]
        except (Stale, LogSetBack):
            return []

    (found,) = await eventually(known, within=WITHIN_S)
    return found


async def expect(mirror: ConsentMirror, patient_id: str, held: bool) -> None:
    async def as_expected() -> bool:
        return await answer(mirror, patient_id) is held

    await eventually(as_expected, within=WITHIN_S)


async def expect_stale(mirror: ConsentMirror, patient_id: str, max_age: float = 1.0) -> str:
    """Wait until the mirror refuses; return what it says."""

    async def refused() -> str:
        try:
            mirror.has_consent(patient_id, "doctor", "d-1", max_age=max_age)
        except Stale as stale:
            return str(stale)
        return ""

    return await eventually(refused, within=WITHIN_S)


async def log_until(deployment: Deployment, positions: dict[int, int]) -> dict[Key, Types]:
    """Fold the log up to these positions, as simply as can be."""
    held: dict[Key, Types] = defaultdict(set)
    rows = await fetch(
        deployment.event_store_url, "SELECT * FROM events ORDER BY partition, position"
    )
    for row in rows:
        data = json.loads(row["data"])
        side = {"ConsentGranted": "to", "ConsentRevoked": "from"}.get(row["type"])
        if side and row["position"] <= positions[row["partition"]]:
            who = (data["patient_id"], data[f"{side}_entity"], data[f"{side}_id"])
            (held[who].add if side == "to" else held[who].discard)(data["target"])
    return {who: types for who, types in held.items() if types}


def read_file(path: Path) -> tuple[dict[int, int], dict[Key, Types]]:
    """Read positions and consents, as of one moment."""
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as database:
        database.execute("BEGIN")
        positions = dict(database.execute("SELECT number, position FROM partitions"))
        held: dict[Key, Types] = {
            row[:3]: {name for name, end in zip(RECORD_TYPES, row[3:], strict=True) if end}
            for row in database.execute("SELECT * FROM consents")
        }
    return positions, held


async def reaches_the_end(deployment: Deployment, path: Path) -> None:
    async def reached() -> bool:
        rows = await fetch(
            deployment.event_store_url,
            "SELECT partition, max(position) AS head FROM events GROUP BY 1",
        )
        positions = _positions(path) if path.exists() else {}
        return all(positions.get(row["partition"]) == row["head"] for row in rows)

    await eventually(reached, within=WITHIN_S)


async def all_projected(deployment: Deployment) -> bool:
    return await projected(deployment) == await log_size(deployment)


async def test_its_answers_are_those_of_has_consent_under_load(
    running: Deployment, client: Client, path: Path
) -> None:
    sent = await flood(client, patients=20)
    with mirrored(running, path) as mirror:
        sent += await flood(client, patients=20)
        await replies(client, sent)
        await reaches_the_end(running, path)
        await eventually(lambda: all_projected(running), within=WITHIN_S)
        async with ConsentClient.connect(running.rabbitmq_url, partitions=PARTITIONS) as asker:
            targets: tuple[Target, ...] = (*RECORD_TYPES, "all")
            for number, doctor, target in product(range(20), range(3), targets):
                question = (f"p-{number}", "doctor", f"d-{doctor}", target)
                held = await asker.has_consent(*question)  # type: ignore[arg-type]
                assert mirror.has_consent(*question) is held.has_consent, question  # type: ignore[arg-type]
        assert set(mirror.as_of()) == set(range(PARTITIONS))
        assert max(mirror.as_of().values()) < FRESH_S


async def test_after_a_no_there_is_no_yes_until_the_next_grant(
    running: Deployment, client: Client, path: Path
) -> None:
    with mirrored(running, path) as mirror:
        for held in [True, False] * 15:
            verb = "GrantConsent" if held else "RevokeConsent"
            asking = asyncio.create_task(client.command(verb, "p-race"))
            seen: list[bool] = []
            while not asking.done() or seen[-1] is not held:
                seen.append(await answer(mirror, "p-race"))
                await asyncio.sleep(0)
            turned = seen.index(held)
            assert set(seen[turned:]) == {held}
            assert (await asking)["status"] == "accepted"


PROGRAM: Final = """
import sys, time

from shared.client import ConsentMirror, Stale

url, path = sys.argv[1:]
with ConsentMirror(url, path, partitions=4, look_every=0.1, max_age=2) as mirror:
    while True:
        try:
            print(mirror.has_consent("p-shared", "doctor", "d-1", "exams"), flush=True)
        except Stale as stale:
            print(stale, flush=True)
        time.sleep(0.02)
"""


class Process:
    """A process with a mirror, which says again and again whether d-1 may see p-shared's exams."""

    def __init__(self, deployment: Deployment, path: Path, said: Path) -> None:
        self._said = said
        with said.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, deployment.rabbitmq_url, path], stdout=out
            )

    def last(self) -> str:
        return (["", *self._said.read_text().splitlines()])[-1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


@pytest.fixture
def start(running: Deployment, path: Path) -> Iterator[Any]:
    started: list[Process] = []
    numbers = count()

    def begin() -> Process:
        process = Process(running, path, path.with_name(f"said-{next(numbers)}"))
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()


async def expect_said(process: Process, words: str) -> None:
    async def said() -> bool:
        return process.last() == words

    await eventually(said, within=WITHIN_S)


async def test_killed_at_any_moment_its_file_is_a_beginning_of_the_log_and_goes_on_from_there(
    running: Deployment,
    client: Client,
    path: Path,
    start: Any,  # noqa: ANN401
) -> None:
    chance = random.Random(4)  # noqa: S311
    sent: list[str] = []
    before: dict[int, int] = dict.fromkeys(range(PARTITIONS), 0)
    for _ in range(8):
        sent += await flood(client, patients=6)
        process = start()

        async def has_moved(before: dict[int, int] = before) -> bool:
            return path.exists() and bool(_positions(path)) and _positions(path) != before

        await eventually(has_moved, within=WITHIN_S)
        await asyncio.sleep(chance.random() / 10)
        process.kill()
        positions, held = read_file(path)
        assert held == await log_until(running, positions)
        assert all(positions[number] >= before[number] for number in before)
        before = positions
    await replies(client, sent)
    start()
    await reaches_the_end(running, path)
    positions, held = read_file(path)
    assert held == await log_until(running, positions)


def _positions(path: Path) -> dict[int, int]:
    try:
        return read_file(path)[0]
    except sqlite3.OperationalError:
        return {}


async def test_processes_share_a_file_and_another_takes_over_when_its_writer_dies(
    running: Deployment,
    client: Client,
    sandbox: Sandbox,
    start: Any,  # noqa: ANN401
) -> None:
    await client.command("GrantConsent", "p-shared")
    first = start()
    await expect_said(first, "True")
    others = [start(), start()]
    for process in others:
        await expect_said(process, "True")

    async def one_is_connected() -> bool:
        """One process writes, and the others need no broker, which tells of it seconds late."""
        return _connections(sandbox) == 1

    await eventually(one_is_connected)
    first.kill()
    await client.command("RevokeConsent", "p-shared")
    for process in others:
        await expect_said(process, "False")
    others[0].kill()
    await client.command("GrantConsent", "p-shared")
    await expect_said(others[1], "True")


async def test_while_its_keeper_is_frozen_nobody_answers_from_what_it_kept(
    running: Deployment,
    client: Client,
    start: Any,  # noqa: ANN401
) -> None:
    await client.command("GrantConsent", "p-shared")
    keeper = start()
    await expect_said(keeper, "True")
    other = start()
    await expect_said(other, "True")
    keeper.process.send_signal(signal.SIGSTOP)
    await client.command("RevokeConsent", "p-shared")

    async def refuses() -> bool:
        return "was known to its end" in other.last()

    await eventually(refuses, within=WITHIN_S)
    keeper.process.send_signal(signal.SIGCONT)
    await expect_said(other, "False")


def _connections(sandbox: Sandbox) -> int:
    found = sandbox.broker.api("GET", "/connections")
    names = [one.get("client_properties", {}).get("connection_name") for one in found]
    return names.count("consent mirror") or names.count(None)


async def test_while_the_broker_is_away_it_answers_until_that_is_too_old_and_then_says_why(
    running: Deployment, client: Client, path: Path
) -> None:
    await client.command("GrantConsent", "p-cut")
    with open_wires() as wires:
        link = wires.lay(running.rabbitmq_url)
        with mirrored(running, path, url=link.url) as mirror:
            await expect(mirror, "p-cut", held=True)
            await asyncio.to_thread(link.disturb, Disorder("refuse"))
            await client.command("RevokeConsent", "p-cut")
            assert mirror.has_consent("p-cut", "doctor", "d-1", "exams", max_age=3600)
            assert "was known to its end" in await expect_stale(mirror, "p-cut")
            assert max(mirror.as_of().values()) > 1.0
            await asyncio.to_thread(link.disturb, None)
            await expect(mirror, "p-cut", held=False)


async def test_a_broker_that_falls_silent_makes_it_stale_too(
    running: Deployment, client: Client, path: Path
) -> None:
    await client.command("GrantConsent", "p-mute")
    with open_wires() as wires:
        link = wires.lay(running.rabbitmq_url)
        with mirrored(running, path, url=link.url) as mirror:
            await expect(mirror, "p-mute", held=True)
            await asyncio.to_thread(link.disturb, Disorder("silence"))
            await expect_stale(mirror, "p-mute")
            await client.command("RevokeConsent", "p-mute")
            await asyncio.to_thread(link.disturb, None)
            await expect(mirror, "p-mute", held=False)


async def test_without_the_command_service_silence_is_no_knowledge(
    deployment: Deployment, client: Client, path: Path
) -> None:
    worker, _ = deployment.start_both()
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as sender:
        await sender.command("GrantConsent", "p-quiet")
        with mirrored(deployment, path) as mirror:
            await expect(mirror, "p-quiet", held=True)
            worker.kill()
            assert "NoAnswer" in await eventually(lambda: _said_no_answer(mirror), within=WITHIN_S)
            deployment.start("command_service").wait_ready()
            await expect(mirror, "p-quiet", held=True)
            await sender.command("RevokeConsent", "p-quiet")
            await expect(mirror, "p-quiet", held=False)
    del client


async def _said_no_answer(mirror: ConsentMirror) -> str:
    said = await expect_stale(mirror, "p-quiet")
    return said if "NoAnswer" in said else ""


async def test_a_consent_ends_by_itself_though_nothing_runs_any_more(
    deployment: Deployment, path: Path
) -> None:
    worker, _ = deployment.start_both()
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as sender:
        await sender.command("GrantConsent", "p-end", target="conditions")
        with mirrored(deployment, path, max_age=3600) as mirror:
            await reaches_the_end(deployment, path)
            end = datetime.now(UTC) + timedelta(seconds=5)
            body: Json = body_of("GrantConsent", "p-end") | {"expires_at": end.isoformat()}
            granted = await sender.reply(await sender.send("GrantConsent", body))
            assert granted["status"] == "accepted"
            await expect(mirror, "p-end", held=True)
            worker.kill()

            async def ended() -> bool:
                held = mirror.has_consent("p-end", "doctor", "d-1", "exams")
                assert held is (datetime.now(UTC) < end) or datetime.now(UTC) >= end
                return not held

            await eventually(ended, within=WITHIN_S)
            assert datetime.now(UTC) >= end
            assert mirror.has_consent("p-end", "doctor", "d-1", "conditions")


async def test_it_begins_again_where_its_file_ends(
    running: Deployment, client: Client, path: Path
) -> None:
    await client.command("GrantConsent", "p-again")
    with mirrored(running, path) as mirror:
        await expect(mirror, "p-again", held=True)
        await reaches_the_end(running, path)
    positions, _ = read_file(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO consents VALUES ('p-mark', 'doctor', 'd-1', 1, 1, 1, 1)")
    await client.command("RevokeConsent", "p-again")
    with mirrored(running, path) as mirror:
        await expect(mirror, "p-again", held=False)
    after, held = read_file(path)
    assert sum(after.values()) == sum(positions.values()) + 1
    assert ("p-mark", "doctor", "d-1") in held, "it was not made anew"


async def test_its_broker_may_be_one_of_several_hosts(
    running: Deployment, client: Client, path: Path
) -> None:
    await client.command("GrantConsent", "p-hosts")
    url = running.rabbitmq_url.replace("@", "@127.0.0.1:1,")
    with mirrored(running, path, url=url) as mirror:
        await expect(mirror, "p-hosts", held=True)


async def test_the_log_of_another_deployment_is_refused_by_name(
    running: Deployment, client: Client, sandbox: Sandbox, migrated: str, path: Path
) -> None:
    await client.command("GrantConsent", "p-log")
    with mirrored(running, path) as mirror:
        await expect(mirror, "p-log", held=True)
    with open_deployment(sandbox, "another", partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        made.start("command_service").wait_ready()
        async with open_client(made.rabbitmq_url, PARTITIONS) as sender:
            await replies(sender, await flood(sender, patients=20))
        with mirrored(made, path, max_age=3600) as mirror:

            async def refused() -> str:
                try:
                    mirror.has_consent("p-log", "doctor", "d-1", "exams")
                except LogSetBack as error:
                    return str(error)
                return ""

            assert "was set back: it ends at" in await eventually(refused, within=WITHIN_S)
    with mirrored(running, path) as mirror:
        await expect(mirror, "p-log", held=True)


async def test_a_log_that_was_restored_is_noticed_before_anything_is_taken_from_it(
    deployment: Deployment, sandbox: Sandbox, path: Path
) -> None:
    deployment.start("command_service").wait_ready()
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as sender:
        await sender.command("GrantConsent", "p-1")
        backup = Backup.take(sandbox.event_store_server, deployment.event_store_url)
        try:
            deployment.workers[0].wait_ready()
            await sender.command("GrantConsent", "p-1", id_="d-lost")
            with mirrored(deployment, path, max_age=3600) as mirror:
                await eventually(lambda: _held(mirror, "d-lost"), within=WITHIN_S)
                deployment.restart(deployment.workers[0])
                before = read_file(path)
                backup.restore()
                await eventually(lambda: _is_refused(mirror), within=WITHIN_S)
                done = deployment.run("command_service", "accept-log")
                assert done.returncode == 0, done.stderr
                await sender.command("RevokeConsent", "p-1")
                await sender.command("GrantConsent", "p-1", target="conditions")
                assert await _is_refused(mirror)
                assert read_file(path) == before
            for file in path.parent.glob("mirror.db*"):
                file.unlink()
            with mirrored(deployment, path) as mirror:
                await expect(mirror, "p-1", held=False)
                assert not mirror.has_consent("p-1", "doctor", "d-lost", "exams")
        finally:
            backup.drop()


async def test_a_log_that_lacks_what_was_published_is_not_believed_until_an_operator_decided(
    deployment: Deployment, sandbox: Sandbox, path: Path
) -> None:
    deployment.start("command_service").wait_ready()
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as sender:
        partition = (await sender.command("GrantConsent", "p-1"))["partition"]
        backup = Backup.take(sandbox.event_store_server, deployment.event_store_url)
        try:
            deployment.workers[0].wait_ready()
            await sender.command("RevokeConsent", "p-1")
            deployment.restart(deployment.workers[0])
            backup.restore()
            with mirrored(deployment, path) as mirror:  # it never had the revoke

                async def only_that_one_is_unknown() -> bool:
                    with suppress(Stale):
                        return [n for n, age in mirror.as_of().items() if age == inf] == [partition]
                    return False

                await eventually(only_that_one_is_unknown, within=WITHIN_S)
                await eventually(partial(_is_undecided, mirror), within=WITHIN_S)
                assert deployment.run("command_service", "accept-log").returncode == 0
                await expect(mirror, "p-1", held=True)
        finally:
            backup.drop()


async def _is_undecided(mirror: ConsentMirror) -> bool:
    return "its operator has not decided yet" in await expect_stale(mirror, "p-1")


async def _held(mirror: ConsentMirror, doctor: str) -> bool:
    try:
        return mirror.has_consent("p-1", "doctor", doctor, "exams")
    except Stale:
        return False


async def _is_refused(mirror: ConsentMirror) -> bool:
    try:
        mirror.has_consent("p-1", "doctor", "d-lost", "exams")
    except LogSetBack:
        return True
    return False


async def test_with_a_wrong_number_of_partitions_nothing_is_answered(
    running: Deployment, path: Path
) -> None:
    for wrong in (PARTITIONS - 1, PARTITIONS + 1):
        own = path.with_name(f"{wrong}.db")
        with mirrored(running, own, partitions=wrong) as mirror:

            async def told(mirror: ConsentMirror = mirror) -> bool:
                return "deployment has not" in await expect_stale(mirror, "p-1")

            await eventually(told, within=WITHIN_S)


async def test_a_file_that_is_removed_is_made_anew(
    running: Deployment, client: Client, path: Path
) -> None:
    await client.command("GrantConsent", "p-gone")
    with mirrored(running, path, max_age=1.0) as mirror:
        await expect(mirror, "p-gone", held=True)
        for file in path.parent.glob("mirror.db*"):
            if not file.name.endswith(".lock"):
                file.unlink()
        await eventually(lambda: _exists(path), within=WITHIN_S)
        await client.command("RevokeConsent", "p-gone")
        await expect(mirror, "p-gone", held=False)
        await reaches_the_end(running, path)


async def _exists(path: Path) -> bool:
    return bool(_positions(path)) if path.exists() else False


async def test_what_a_newer_version_wrote_is_refused_until_the_mirror_is_upgraded(
    deployment: Deployment, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = deployment.start("command_service")
    old.wait_ready()
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as sender:
        await sender.command("GrantConsent", "p-new", target="conditions")
        await sender.command("GrantConsent", "p-old")
        with mirrored(deployment, path) as mirror:
            await expect(mirror, "p-old", held=True)
            assert await answer(mirror, "p-new", "conditions")
            assert old.stop() == 0
            newer = ("-m", "tests.support.next_version", "command_service", "run")
            deployment.start("command_service", program=newer).wait_ready()
            await sender.command("GrantConsent", "p-new")
            await sender.command("RevokeConsent", "p-old")
            await expect(mirror, "p-old", held=False)

            async def refused() -> bool:
                return "can't be read" in await expect_stale(mirror, "p-new", max_age=3600)

            await eventually(refused, within=WITHIN_S)
        next_version.upgrade(monkeypatch)
        with mirrored(deployment, path) as mirror:
            await expect(mirror, "p-new", held=True)
            assert await answer(mirror, "p-new", "conditions")
