"""A subscriber in Python: history, then live; each event once and in order, whatever breaks."""

import asyncio
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic_core import from_json

from shared.client.subscription import Start, subscribe
from shared.errors import NotHandled, SchemaError, SettingsError
from shared.messages.cloud_event import CloudEvent
from shared.messages.topic_patterns import chooses
from tests.chaos.links import open_wires
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, open_client
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch, flood

VHOST: Final = "subscribers"
WITHIN_S: Final = 40.0
Place = tuple[int, int]


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    """One deployment for the module; each test has queues and patients of its own."""
    with open_deployment(sandbox, VHOST, partitions=PARTITIONS, prepared_from=migrated) as made:
        assert made.run("command_service", "topology").returncode == 0
        made.start("command_service").wait_ready()
        yield made


@pytest.fixture
async def client(running: Deployment) -> AsyncIterator[Client]:
    async with open_client(running.rabbitmq_url, PARTITIONS) as connected:
        yield connected


@dataclass
class Seen:
    """A handler that notes what it was given, and remembers positions as a database would."""

    events: list[CloudEvent] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)

    @property
    def places(self) -> list[Place]:
        return [(event.partition, event.position) for event in self.events]

    def of(self, patient_id: str) -> list[int]:
        return [event.streamversion for event in self.events if event.subject == patient_id]

    async def handle(self, event: CloudEvent) -> None:
        self.events.append(event)
        before = self.positions.get(event.partition, 0)
        self.positions[event.partition] = max(before, event.position)

    async def remembered(self) -> dict[int, int]:
        return dict(self.positions)


Handle = Callable[[CloudEvent], Awaitable[None]]


@asynccontextmanager
async def subscribed(
    deployment: Deployment,
    queue: str,
    handle: Handle,
    *more: Any,  # noqa: ANN401
    **options: Any,  # noqa: ANN401
) -> AsyncIterator["asyncio.Task[Any]"]:
    """Subscribe until the end of the block; an error that ended it sooner is raised there."""
    options = {"partitions": PARTITIONS, "url": deployment.rabbitmq_url, **options}
    url = options.pop("url")
    task = asyncio.create_task(subscribe(url, queue, handle, *more, **options))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def log_of(deployment: Deployment, patterns: Sequence[str] = ("#",)) -> list[CloudEvent]:
    """Read from the database what was published, as far as these patterns choose it."""
    rows = await fetch(
        deployment.event_store_url, "SELECT * FROM events ORDER BY partition, position"
    )
    events = [
        CloudEvent(
            id=str(row["event_id"]),
            type=row["type"],
            subject=row["stream_id"],
            time="",
            schemaversion=row["schema_version"],
            partition=row["partition"],
            position=row["position"],
            streamversion=row["stream_version"],
            correlationid=row["correlation_id"],
            causationid=str(row["causation_id"]),
            data=_json(row["data"]),
        )
        for row in rows
    ]
    return [event for event in events if chooses(patterns)(event)]


def _json(text: str) -> dict[str, Any]:
    return dict(from_json(text))


def by_partition(places: Sequence[Place]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for partition, position in places:
        found[partition].append(position)
    return dict(found)


async def all_written(deployment: Deployment, sent: int, before: int) -> None:
    async def written() -> bool:
        return len(await log_of(deployment)) >= before + sent

    await eventually(written, within=WITHIN_S)


async def expect_the_log(
    deployment: Deployment, places: Callable[[], list[Place]], patterns: Sequence[str] = ("#",)
) -> None:
    """Wait until as many were seen as there are; then each was seen once and in order."""
    expected = [(one.partition, one.position) for one in await log_of(deployment, patterns)]

    async def as_many() -> bool:
        return len(places()) >= len(expected)

    await eventually(as_many, within=WITHIN_S)
    assert by_partition(places()) == by_partition(expected)


@pytest.mark.parametrize("patterns", [["#"], ["granted.#"], ["*.*.exams.*", "revoked.#.1"]])
async def test_a_subscriber_that_comes_while_events_flow_sees_each_once_and_in_order(
    running: Deployment, client: Client, patterns: list[str]
) -> None:
    before = len(await log_of(running))
    first = await flood(client, patients=10)
    seen = Seen()
    async with subscribed(running, f"seam-{len(patterns[0])}", seen.handle, patterns=patterns):
        sent = first + [one for _ in range(3) for one in await flood(client, patients=10)]
        outcomes = [await client.reply(one, within=WITHIN_S) for one in sent]
        accepted = sum(one["status"] == "accepted" for one in outcomes)
        await all_written(running, accepted, before)
        await expect_the_log(running, lambda: seen.places, patterns)


async def ask(client: Client, *patient_ids: str) -> list[Place]:
    """Have doctors ask for exams; return where the events are in the log."""
    outcomes = [await client.command("AskConsent", one) for one in patient_ids]
    return [(one["partition"], one["events"][0]["position"]) for one in outcomes]


async def expect_versions(seen: Seen, patient_id: str, versions: list[int]) -> None:
    async def arrived() -> bool:
        return len(seen.of(patient_id)) >= len(versions)

    await eventually(arrived, within=WITHIN_S)
    assert seen.of(patient_id) == versions


async def test_from_now_on_leaves_the_history_out_and_the_queue_keeps_what_comes_while_it_is_away(
    running: Deployment, client: Client
) -> None:
    await ask(client, "p-now")
    seen, options = Seen(), {"start": Start.NOW, "patterns": ["asked.#"]}
    async with subscribed(running, "now", seen.handle, **options):
        version = 1
        while not seen.events:  # it may be connecting still
            await ask(client, "p-now")
            version += 1
            await asyncio.sleep(0.05)
    first = seen.of("p-now")[0]
    assert first > 1
    await ask(client, "p-now", "p-now-too")  # of p-now-too no position is remembered
    async with subscribed(running, "now", seen.handle, seen.remembered, **options):
        await expect_versions(seen, "p-now", list(range(first, version + 2)))
        await expect_versions(seen, "p-now-too", [1])


PROGRAM: Final = """
import asyncio, sqlite3, sys

from shared.client.subscription import subscribe

url, path = sys.argv[1:]
database = sqlite3.connect(path, timeout=30)
database.execute("PRAGMA synchronous = OFF")  # a process that is killed loses nothing by it


async def handle(event):
    with database:
        place = (event.partition, event.position)
        database.execute("INSERT INTO seen VALUES (?, ?)", place)
        database.execute("REPLACE INTO positions VALUES (?, ?)", place)


async def positions():
    return dict(database.execute("SELECT * FROM positions"))


asyncio.run(subscribe(url, "killed", handle, positions, partitions=4))
"""


async def test_a_subscriber_that_is_killed_goes_on_from_the_positions_that_it_stored(
    running: Deployment, client: Client, tmp_path: Path
) -> None:
    database = sqlite3.connect(tmp_path / "seen.db", timeout=30)
    database.execute("PRAGMA journal_mode = WAL")  # to read while it is written to
    database.execute("CREATE TABLE seen (partition INTEGER, position INTEGER)")
    database.execute("CREATE TABLE positions (partition INTEGER PRIMARY KEY, position INTEGER)")

    def places() -> list[Place]:
        return database.execute("SELECT * FROM seen ORDER BY rowid").fetchall()

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, running.rabbitmq_url, tmp_path / "seen.db"],
            stderr=subprocess.PIPE,
        )

    for _ in range(3):
        before = len(places())
        sent = await flood(client, patients=5)

        async def under_way(before: int = before) -> bool:
            return len(places()) > before

        process = start()
        try:
            await eventually(under_way, within=WITHIN_S)
        finally:
            process.kill()
            process.communicate()
        for one in sent:
            await client.reply(one, within=WITHIN_S)
    process = start()
    try:
        await expect_the_log(running, places)
    finally:
        process.kill()
        process.communicate()
        database.close()


@pytest.mark.parametrize("patterns", [["#"], ["granted.#"]])
async def test_a_connection_that_is_cut_again_and_again_costs_and_repeats_nothing(
    running: Deployment, client: Client, patterns: list[str]
) -> None:
    seen = Seen()
    with open_wires() as wires:
        link = wires.lay(running.rabbitmq_url)
        queue = f"cut-{len(patterns[0])}"
        async with subscribed(running, queue, seen.handle, url=link.url, patterns=patterns):
            for _ in range(4):
                count = len(seen.events)
                sent = await flood(client, patients=3)

                async def more(count: int = count) -> bool:
                    return len(seen.events) > count

                await eventually(more, within=WITHIN_S)
                await asyncio.to_thread(link.cut)
                for one in sent:
                    await client.reply(one, within=WITHIN_S)
            await expect_the_log(running, lambda: seen.places, patterns)


async def test_a_queue_that_is_deleted_is_made_again_and_what_it_lost_is_read_from_the_log(
    running: Deployment, client: Client, sandbox: Sandbox
) -> None:
    seen = Seen()
    async with subscribed(running, "deleted", seen.handle, patterns=["asked.#"]):
        await ask(client, "p-deleted")
        await expect_versions(seen, "p-deleted", [1])
        sandbox.broker.api("DELETE", f"/queues/{VHOST}/deleted")
        await ask(client, "p-deleted", "p-deleted")
        await expect_versions(seen, "p-deleted", [1, 2, 3])


async def test_a_hole_is_filled_from_the_log_before_anything_later(
    running: Deployment, client: Client
) -> None:
    seen = Seen()
    async with subscribed(running, "hole", seen.handle):
        await ask(client, "p-hole")
        await expect_versions(seen, "p-hole", [1])
        queue = await client.channel.get_queue("hole", ensure=False)
        await queue.unbind("consent.events", "#")
        await client.subscribe("#", lambda _: None)  # or there would be no queue to publish to
        await ask(client, "p-hole", "p-hole")
        await queue.bind("consent.events", "#")
        await ask(client, "p-hole")
        await expect_versions(seen, "p-hole", [1, 2, 3, 4])


async def test_what_a_quiet_subscriber_has_missed_is_found_in_the_log(
    running: Deployment, client: Client
) -> None:
    seen = Seen()
    async with subscribed(running, "quiet", seen.handle, patterns=["asked.#"]):
        await ask(client, "p-quiet")
        await expect_versions(seen, "p-quiet", [1])
        queue = await client.channel.get_queue("quiet", ensure=False)
        await queue.unbind("consent.events", "asked.#")
        await client.subscribe("#", lambda _: None)
        await ask(client, "p-quiet")
        await expect_versions(seen, "p-quiet", [1, 2])


class Failing(Seen):
    """Fails on the first event of one patient, as often as it is told to."""

    def __init__(self, patient_id: str, times: int, error: type[Exception] = ValueError) -> None:
        super().__init__()
        self.patient_id = patient_id
        self.times = times
        self.error = error

    async def handle(self, event: CloudEvent) -> None:
        if event.subject == self.patient_id and self.times:
            self.times -= 1
            raise self.error("it is told to")
        await super().handle(event)


async def test_a_handler_that_fails_and_then_does_not_is_given_the_event_again(
    running: Deployment, client: Client
) -> None:
    await ask(client, "p-again", "p-again")
    seen = Failing("p-again", times=2)
    async with subscribed(running, "again", seen.handle, attempts=3):
        await expect_versions(seen, "p-again", [1, 2])


async def test_what_a_handler_waits_for_is_waited_for_beyond_all_attempts(
    running: Deployment, client: Client
) -> None:
    await ask(client, "p-away", "p-away")
    seen = Failing("p-away", times=3, error=ConnectionRefusedError)
    async with subscribed(running, "away", seen.handle, attempts=1):
        await expect_versions(seen, "p-away", [1, 2])
    other = Failing("p-away", times=3, error=LookupError)
    async with subscribed(running, "away-2", other.handle, attempts=1, waits_for=(LookupError,)):
        await expect_versions(other, "p-away", [1, 2])


async def test_an_event_that_keeps_failing_is_parked_with_its_patient_until_it_is_mended(
    running: Deployment, client: Client, sandbox: Sandbox
) -> None:
    await ask(client, "p-odd", "p-fine", "p-odd")
    seen = Failing("p-odd", times=1_000)
    parked = f"/queues/{VHOST}/parking.parked"

    async def are_parked(count: int) -> bool:
        return await client.length("parking.parked") == count

    async with subscribed(running, "parking", seen.handle, seen.remembered, attempts=2):
        await expect_versions(seen, "p-fine", [1])
        await eventually(lambda: are_parked(2), within=WITHIN_S)
        assert seen.of("p-odd") == []
        assert seen.times == 998, "the later event of a parked patient is not tried"
    (first, second) = sandbox.broker.api(
        "POST",
        f"{parked}/get",
        {"count": 2, "ackmode": "ack_requeue_true", "encoding": "auto"},
    )
    assert first["properties"]["headers"]["x-consent-details"] == "ValueError: it is told to"
    assert second["properties"]["headers"]["x-consent-details"].startswith("behind an event")

    async with subscribed(running, "parking", seen.handle, seen.remembered, attempts=2):
        await ask(client, "p-odd", "p-fine")
        await expect_versions(seen, "p-fine", [1, 2])
        await eventually(lambda: are_parked(3), within=WITHIN_S)

    seen.times = 0
    async with subscribed(running, "parking", seen.handle, seen.remembered):
        await ask(client, "p-odd")
        await expect_versions(seen, "p-odd", [1, 2, 3, 4])
        await eventually(lambda: are_parked(0), within=WITHIN_S)


class OwnParking:
    """Parks in the subscriber's own store, and remembers the position with it."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.kept: list[tuple[str, int, str]] = []

    async def parked(self) -> set[str]:
        return {patient_id for patient_id, _, _ in self.kept}

    async def park(self, event: CloudEvent, reason: str) -> None:
        self.kept.append((event.subject, event.streamversion, reason))
        self.seen.positions[event.partition] = event.position


async def test_a_parking_of_ones_own_is_given_what_fails_and_remembers_whose_it_is(
    running: Deployment, client: Client
) -> None:
    await ask(client, "p-own", "p-own")
    seen = Failing("p-own", times=1)
    parking = OwnParking(seen)
    options = {"parking": parking, "attempts": 1}
    async with subscribed(running, "own", seen.handle, seen.remembered, **options):

        async def kept() -> bool:
            return len(parking.kept) == 2

        await eventually(kept, within=WITHIN_S)
    async with subscribed(running, "own", seen.handle, seen.remembered, **options):
        await ask(client, "p-own", "p-own-too")
        await expect_versions(seen, "p-own-too", [1])
        await eventually(lambda: count_of(parking, 3), within=WITHIN_S)
    assert seen.of("p-own") == []
    assert [version for _, version, _ in parking.kept] == [1, 2, 3]
    assert parking.kept[0][2] == "ValueError: it is told to"


async def count_of(parking: OwnParking, expected: int) -> bool:
    return len(parking.kept) == expected


async def test_a_second_process_waits_until_the_first_is_gone(
    running: Deployment, client: Client
) -> None:
    seen, idle = Seen(), Seen()
    async with subscribed(running, "two", seen.handle, patterns=["asked.#"]) as first:
        await ask(client, "p-two")
        await expect_versions(seen, "p-two", [1])
        async with subscribed(running, "two", idle.handle, seen.remembered, patterns=["asked.#"]):
            await ask(client, "p-two")
            await expect_versions(seen, "p-two", [1, 2])
            assert idle.events == []
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            await ask(client, "p-two")
            await expect_versions(idle, "p-two", [3])


async def test_to_cancel_in_the_midst_of_an_event_leaves_nothing_half_done(
    running: Deployment, client: Client
) -> None:
    await ask(client, "p-cancel", "p-cancel")
    seen, in_hand, go_on = Seen(), asyncio.Event(), asyncio.Event()

    async def slow(event: CloudEvent) -> None:
        if event.subject == "p-cancel" and event.streamversion == 2:
            in_hand.set()
            await go_on.wait()
        await seen.handle(event)

    async with subscribed(running, "cancel", slow, seen.remembered):
        async with asyncio.timeout(WITHIN_S):
            await in_hand.wait()
    assert seen.of("p-cancel") == [1]
    go_on.set()
    async with subscribed(running, "cancel", slow, seen.remembered):
        await ask(client, "p-cancel")
        await expect_versions(seen, "p-cancel", [1, 2, 3])
    assert len(set(seen.places)) == len(seen.places)


async def test_without_a_durable_queue_what_can_not_be_handled_ends_the_subscription(
    running: Deployment, client: Client
) -> None:
    await ask(client, "p-passing")
    seen = Failing("p-passing", times=1)
    with pytest.raises(NotHandled) as raised:
        await subscribe(
            *(running.rabbitmq_url, "passing", seen.handle),
            partitions=PARTITIONS,
            attempts=1,
            durable=False,
        )
    assert isinstance(raised.value.__cause__, ValueError)


async def beyond() -> dict[int, int]:
    return {0: 10**9}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"partitions": PARTITIONS - 1}, "the deployment has not 3 partitions"),
        ({"partitions": PARTITIONS + 1}, "the deployment has not 5 partitions"),
        (
            {"positions": beyond},
            "it ends at [0-9]+ and does not have what was taken up to 1000000000",
        ),
        ({"patterns": []}, "no pattern is given"),
        ({"queue": "no\nname"}, "the queue's name must be"),
    ],
)
async def test_a_wrong_setting_is_said_at_once(
    running: Deployment, options: dict[str, Any], complaint: str
) -> None:
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(SettingsError, match=complaint):
            await subscribe(
                running.rabbitmq_url,
                handle=Seen().handle,
                **{"queue": "wrong", "partitions": PARTITIONS, **options},
            )


async def test_a_queue_of_another_kind_is_not_taken(running: Deployment, client: Client) -> None:
    await client.channel.declare_queue("taken", auto_delete=True)
    with pytest.raises(SchemaError, match="delete it, or take another name"):
        await subscribe(running.rabbitmq_url, "taken", Seen().handle, partitions=PARTITIONS)


async def test_what_is_no_event_of_the_log_is_dropped_and_harms_nothing(
    running: Deployment, client: Client
) -> None:
    seen = Seen()
    async with subscribed(running, "forged", seen.handle):
        await ask(client, "p-forged")
        await expect_versions(seen, "p-forged", [1])
        forged = seen.events[-1].model_copy(update={"position": 10**6}).to_json()
        elsewhere = seen.events[-1].model_copy(update={"partition": 99}).to_json()
        for body in (b"no event", elsewhere, forged):
            await client.send(None, body, exchange="", key="forged", reply_to=None)
        await ask(client, "p-forged")
        await expect_versions(seen, "p-forged", [1, 2])
        await eventually(lambda: is_empty(client, "forged"), within=WITHIN_S)
    assert 10**6 not in [position for _, position in seen.places]


async def is_empty(client: Client, queue: str) -> bool:
    """Whether nothing is ready, after whatever was unsettled has come back."""
    return await client.length(queue) == 0
