"""Snapshots: equal to a full replay, never trusted blindly, and missed by nobody."""

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_service.domain import snapshot
from command_service.domain.decisions import EMPTY, Stream
from command_service.domain.patient import INITIAL, decide, fold
from command_service.domain.rejections import Rejected
from command_service.domain.replay import replay
from command_service.domain.snapshot import EVERY, FORMAT, SnapshotError, is_due, restore, take
from command_service.store import event_store
from command_service.store.event_store import EventStore
from command_service.store.snapshot_writer import MOST_WAITING, SnapshotWriter
from shared.messages.commands import ConsentCommand
from shared.messages.events import ConsentAsked, ConsentEvent, ConsentGranted, ConsentRevoked
from shared.postgres.connection import Pool
from shared.postgres.statements import statement
from tests.servers.test_event_store import append, grant
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch
from tests.unit.test_patient import NOW, commands

GOLDEN: Final = json.loads((Path(__file__).parents[1] / "golden" / "snapshot.json").read_text())


def history_of(commands: Sequence[ConsentCommand]) -> list[ConsentEvent]:
    """List the events that commands cause, one after the other."""
    state, events = INITIAL, []
    for command in commands:
        try:
            caused = decide(state, command, NOW)
        except Rejected:
            continue
        state = fold(state, caused)
        events += caused
    return events


def rows_of(events: Sequence[ConsentEvent]) -> list[dict[str, Any]]:
    """Make the rows that the event store reads for a stream."""
    return [
        {
            "stream_id": "p",
            "stream_version": version,
            "type": type(event).__name__,
            "schema_version": event.schema_version,
            "data": event.model_dump_json(),
        }
        for version, event in enumerate(events, start=1)
    ]


def row_of(taken: snapshot.Snapshot) -> dict[str, Any]:
    return {
        "stream_id": taken.stream_id,
        "stream_version": taken.version,
        "type": None,
        "schema_version": FORMAT,
        "data": taken.state,
        "digest": taken.digest,
    }


@given(st.lists(commands, max_size=30), st.floats(0, 1))
def test_a_snapshot_and_what_follows_equal_a_full_replay(
    history: list[ConsentCommand], part: float
) -> None:
    events = history_of(history)
    cut = round(part * len(events))
    rows = rows_of(events)
    if not cut:
        return
    full, until = replay(rows), replay(rows[:cut])
    found = replay([row_of(take("p", until)), *rows[cut - 1 :]])
    assert found == replace(full, snapshot_version=cut)
    assert restore(take("p", full)) == replace(full, snapshot_version=full.version)


def test_a_golden_snapshot_is_read_as_ever_or_the_format_is_another() -> None:
    """A change of what a state means must raise FORMAT, and then the golden file."""
    events: list[ConsentEvent] = [
        ConsentGranted(patient_id="p", to_entity=entity, to_id=id_, target=target)
        for entity, id_, target in GOLDEN["granted"]
    ]
    events += [
        ConsentRevoked(patient_id="p", from_entity=entity, from_id=id_, target=target)
        for entity, id_, target in GOLDEN["revoked"]
    ]
    events += [
        ConsentAsked(patient_id="p", by_entity=entity, by_id=id_, target=target)
        for entity, id_, target in GOLDEN["asked"]
    ]
    events += [
        ConsentGranted(
            patient_id="p", to_entity=entity, to_id=id_, target=target, expires_at=expires_at
        )
        for entity, id_, target, expires_at in GOLDEN["granted_until"]
    ]
    digest = bytes.fromhex(GOLDEN["digest"])
    kept = snapshot.Snapshot("p", len(events), GOLDEN["state"], digest)
    assert GOLDEN["format"] == FORMAT
    assert restore(kept) == replace(EMPTY.then(events), snapshot_version=len(events))


@pytest.mark.parametrize(
    "change", [{"stream_id": "q"}, {"version": 3}, {"state": "{ }"}, {"digest": b""}]
)
def test_a_snapshot_that_was_changed_is_not_believed(change: dict[str, Any]) -> None:
    with pytest.raises(SnapshotError, match="its digest is wrong"):
        restore(replace(take("p", EMPTY), **change))


@pytest.mark.parametrize(
    "state",
    [
        "",
        "7",
        '{"granted":{"exams":["d-1"]},"requested":{}}',
        '{"granted":{},"requested":{"x-rays":{"doctor":["d-1"]}}}',
        '{"granted":{}}',
    ],
)
def test_a_snapshot_that_is_signed_nonsense_is_not_believed(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_digest", lambda *_: b"signed")
    with pytest.raises(SnapshotError, match="its state can't be read"):
        restore(replace(take("p", EMPTY), state=state))


def test_a_snapshot_is_due_when_it_lags_and_more_seldom_where_the_state_is_large() -> None:
    few = EMPTY.then(history_of([grant("p")]))
    assert not is_due(replace(few, version=EVERY - 1))
    assert is_due(replace(few, version=EVERY))
    assert not is_due(replace(few, version=2 * EVERY - 1, snapshot_version=EVERY))
    many = EMPTY.then(history_of([grant("p", f"d-{n}") for n in range(20 * EVERY)]))
    assert not is_due(replace(many, version=20 * EVERY, snapshot_version=19 * EVERY))
    assert is_due(replace(many, version=20 * EVERY, snapshot_version=18 * EVERY))


# In the event store


@pytest.fixture
def store(event_store_pool: Pool) -> EventStore:
    return EventStore(event_store_pool)


async def long_stream(store: EventStore, patient_id: str = "p-1") -> Stream:
    """Append ten events and keep a snapshot of the first eight."""
    await append(store, grant(patient_id, "d-1", "all"), grant(patient_id, "d-2", "all"))
    stream = (await store.read_streams([patient_id]))[patient_id]
    await store.write_snapshot(take(patient_id, stream))
    await append(store, grant(patient_id, "d-3"), grant(patient_id, "d-4"))
    return (await store.read_streams([patient_id]))[patient_id]


async def test_a_stream_is_read_from_its_snapshot_and_short_ones_beside_it(
    store: EventStore, event_store_pool: Pool
) -> None:
    found = await long_stream(store)
    assert (found.version, found.snapshot_version, len(found.state.granted)) == (10, 8, 4)
    lie = take("p-1", Stream(8, INITIAL))  # only what was read can tell that it was read
    await store.write_snapshot(lie)
    await append(store, grant("p-2"))
    both = await store.read_streams(["p-1", "p-2", "p-3", "p-1"])
    assert both.keys() == {"p-1", "p-2"}
    assert (both["p-1"].version, len(both["p-1"].state.granted)) == (10, 2)
    assert both["p-2"] == Stream(1, fold(INITIAL, history_of([grant("p-2")])))
    await event_store_pool.execute("TRUNCATE snapshots")
    again = await store.read_streams(["p-1"])
    assert again["p-1"] == replace(found, snapshot_version=0)


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE snapshots SET state = '{}'",
        "UPDATE snapshots SET state = left(state, -1)",
        "UPDATE snapshots SET stream_version = 7",
        "UPDATE snapshots SET stream_version = 11",
        "UPDATE snapshots SET digest = ''",
        "UPDATE snapshots SET format = format + 1",
        "DELETE FROM snapshots",
    ],
)
async def test_a_spoiled_foreign_or_missing_snapshot_costs_nothing_but_time(
    store: EventStore, event_store_pool: Pool, spoil: str
) -> None:
    expected = await long_stream(store)
    await event_store_pool.execute(spoil)
    found = (await store.read_streams(["p-1"]))["p-1"]
    assert found == replace(expected, snapshot_version=0)
    await store.write_snapshot(take("p-1", found))
    assert (await store.read_streams(["p-1"]))["p-1"] == replace(found, snapshot_version=10)


async def test_much_history_is_replayed_while_other_work_goes_on(
    store: EventStore, event_store_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await event_store_pool.execute(
        """INSERT INTO events
           SELECT 0, number, 'p-1', number, gen_random_uuid(), 'ConsentGranted', 1,
                  json_build_object('patient_id', 'p-1', 'to_entity', 'doctor',
                                    'to_id', 'd-' || number, 'target', 'exams'),
                  now(), 'c', gen_random_uuid(), NULL, NULL, NULL
             FROM generate_series(1, 8000) AS number"""
    )
    begun, turned = threading.Event(), threading.Event()
    replay_each = event_store._replay_each  # noqa: SLF001 - to be in the midst of it

    def replay_once_the_loop_has_turned(rows: Any) -> Any:  # noqa: ANN401 - as it is there
        begun.set()
        assert turned.wait(30), "the loop has a turn while a thread replays"
        return replay_each(rows)

    monkeypatch.setattr(event_store, "_replay_each", replay_once_the_loop_has_turned)
    reading = asyncio.create_task(store.read_streams(["p-1"]))
    assert await asyncio.to_thread(begun.wait, 30)
    turned.set()
    found = (await reading)["p-1"]
    assert (found.version, len(found.state.granted)) == (8000, 8000)


async def test_a_snapshot_of_what_the_log_has_not_is_passed_over(store: EventStore) -> None:
    """As after a restore of the log alone: its next version would make a hole in the stream."""
    found = await long_stream(store)
    await store.write_snapshot(take("p-1", replace(found, version=12)))
    assert (await store.read_streams(["p-1"]))["p-1"] == replace(found, snapshot_version=0)


async def test_streams_and_snapshots_are_found_by_their_indexes(event_store_pool: Pool) -> None:
    query = statement("command_service", "read_streams")
    plan = await event_store_pool.fetch(f"EXPLAIN {query}", ["p-1"], FORMAT)
    text = "\n".join(row[0] for row in plan)
    assert "events_stream_version_key" in text
    assert "snapshots_stream_id_key" in text
    assert "Seq Scan" not in text


async def test_a_writer_that_is_behind_is_offered_the_stream_again(store: EventStore) -> None:
    writer = SnapshotWriter(store)
    due = Stream(EVERY, INITIAL)
    taken = [writer.offer(f"p-{n}", due).snapshot_version for n in range(MOST_WAITING + 1)]
    assert taken == [*[EVERY] * MOST_WAITING, 0]


# In a worker


async def test_a_long_stream_gets_a_snapshot_and_its_next_owner_begins_there(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service")
    worker.wait_ready()
    sent = [
        await client.send(
            "AskConsent",
            {"patient_id": "p-1", "by_entity": "doctor", "by_id": "d-1", "target": "all"},
            message_id=str(uuid4()),
        )
        for _ in range(EVERY // 4 + 1)
    ]
    for one in sent:
        assert (await client.reply(one, within=30))["status"] == "accepted"

    async def newest() -> Any:  # noqa: ANN401 - a row, once there is one
        rows = await fetch(deployment.event_store_url, "SELECT * FROM snapshots")
        return rows and rows[0]

    row = await eventually(newest, within=30)
    assert (row["stream_id"], row["format"]) == ("p-1", FORMAT)
    assert EVERY <= row["stream_version"] <= EVERY + 4
    assert worker.stop() == 0
    lie = take("p-1", Stream(row["stream_version"], fold(INITIAL, history_of([grant("p-1")]))))
    await execute(deployment, "UPDATE snapshots SET state = $1, digest = $2", lie.state, lie.digest)
    deployment.start("command_service").wait_ready()
    rejected = await client.command("GrantConsent", "p-1")
    assert rejected["error"] == "consent_already_granted", "it was read"


async def test_a_snapshot_that_can_not_be_written_stops_nothing(
    deployment: Deployment, client: Client
) -> None:
    await execute(deployment, "ALTER TABLE snapshots ADD CONSTRAINT no_room CHECK (false)")
    worker = deployment.start("command_service")
    worker.wait_ready()
    sent = [
        await client.send(
            "AskConsent",
            {"patient_id": "p-1", "by_entity": "doctor", "by_id": "d-1", "target": "all"},
        )
        for _ in range(EVERY // 4 + 1)
    ]
    for one in sent:
        assert (await client.reply(one, within=30))["status"] == "accepted"

    async def said() -> bool:
        return "snapshot.not_written" in worker.log

    await eventually(said, within=30)
    assert (await client.command("GrantConsent", "p-1"))["status"] == "accepted"
    assert "session.lost" not in worker.log


async def execute(deployment: Deployment, statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(deployment.event_store_url)
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()
