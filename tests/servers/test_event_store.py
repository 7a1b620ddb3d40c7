"""The event store's promises, on a real PostgreSQL: races, fences, order, and no rewriting."""

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import asyncpg
import pytest

from command_service.domain.decisions import Batch, Decision
from command_service.domain.fingerprint import fingerprint
from command_service.domain.received import Received
from command_service.store.event_store import Appended, EventStore
from shared.errors import Conflict, DecidedBefore, Fenced
from shared.messages.commands import ConsentCommand, GrantConsent, RevokeConsent
from shared.messages.replies import CommandAccepted, CommandRejected
from shared.postgres.connection import Pool
from shared.values.partition import partition_of
from shared.values.vocabulary import Target
from tests.conftest import PARTITIONS
from tests.support.eventually import eventually

EPOCHS = dict.fromkeys(range(PARTITIONS), 0)
"""Partitions that nobody has taken yet have epoch 0."""


@pytest.fixture
def store(event_store_pool: Pool) -> EventStore:
    return EventStore(event_store_pool)


def grant(patient_id: str, id_: str = "d-1", target: Target = "exams") -> GrantConsent:
    return GrantConsent(patient_id=patient_id, to_entity="doctor", to_id=id_, target=target)


def revoke(patient_id: str, id_: str = "d-1", target: Target = "exams") -> RevokeConsent:
    return RevokeConsent(patient_id=patient_id, from_entity="doctor", from_id=id_, target=target)


def received(command: ConsentCommand, command_id: UUID | None = None) -> Received:
    return Received(
        command_id=command_id or uuid4(),
        command=command,
        fingerprint=fingerprint(command),
        partition=partition_of(command.patient_id, PARTITIONS),
        correlation_id="c",
    )


async def decide(store: EventStore, commands: Sequence[Received]) -> list[Decision]:
    """Load the patients and decide, as the command path does."""
    streams = await store.read_streams([one.command.patient_id for one in commands])
    batch = Batch(await store.read_receipts([one.command_id for one in commands]), streams)
    answers = [batch.answer(one, uuid4) for one in commands]
    return [answer for answer in answers if isinstance(answer, Decision)]


async def append(store: EventStore, *commands: ConsentCommand) -> Appended:
    return await store.append(
        await decide(store, [received(command) for command in commands]), EPOCHS
    )


async def test_positions_and_versions_have_no_holes_over_all_partitions(
    store: EventStore, event_store_pool: Pool
) -> None:
    for round_ in range(3):
        await append(store, *(grant(f"p-{n % 10}", f"d-{round_}-{n}", "all") for n in range(40)))
    by_partition = await event_store_pool.fetch(
        "SELECT array_agg(position ORDER BY position) AS found FROM events GROUP BY partition"
    )
    by_patient = await event_store_pool.fetch(
        "SELECT array_agg(stream_version ORDER BY position) AS found FROM events GROUP BY stream_id"
    )
    assert sum(len(row["found"]) for row in by_partition) == 3 * 40 * 4
    assert len(by_partition) == PARTITIONS
    assert len(by_patient) == 10
    for row in (*by_partition, *by_patient):
        assert row["found"] == list(range(1, len(row["found"]) + 1))


async def test_an_outcome_says_where_its_events_stand_in_the_log(store: EventStore) -> None:
    await append(store, grant("p-1", "d-1"))
    appended = await append(store, grant("p-1", "d-2", "all"))
    (outcome,) = map(appended.outcome, appended.decided)
    assert isinstance(outcome, CommandAccepted)
    in_log = await store.read_log(outcome.partition, 1, 10)
    assert in_log == appended.events
    assert outcome.version == 5
    assert [(e.id, e.version, e.position) for e in outcome.events] == [
        (str(one.event_id), one.stream_version, one.position) for one in in_log
    ]


async def test_of_two_writers_that_race_one_wins_and_the_other_decides_again(
    store: EventStore,
) -> None:
    await append(store, grant("p-1"))
    both = [received(revoke("p-1")), received(revoke("p-1"))]
    decided = [await decide(store, [one]) for one in both]  # both on version 1

    results = await asyncio.gather(
        *(store.append(decisions, EPOCHS) for decisions in decided), return_exceptions=True
    )
    lost = [number for number, result in enumerate(results) if isinstance(result, Conflict)]
    won = [result for result in results if isinstance(result, Appended)]
    assert len(lost) == len(won) == 1

    again = await store.append(await decide(store, [both[lost[0]]]), EPOCHS)
    (outcome,) = map(again.outcome, again.decided)
    assert isinstance(outcome, CommandRejected)
    assert outcome.error == "consent_not_granted"
    assert (await store.read_streams(["p-1"]))["p-1"].version == 2


async def test_one_command_id_raced_by_two_writers_is_decided_once(store: EventStore) -> None:
    command_id = uuid4()
    patients = [f"p-{number}" for number in range(PARTITIONS * 4)]
    here = patients[0]
    there = next(
        one for one in patients if partition_of(one, PARTITIONS) != partition_of(here, PARTITIONS)
    )
    racing = [
        await decide(store, [received(grant(patient), command_id)]) for patient in (here, there)
    ]
    results = await asyncio.gather(
        *(store.append(decisions, EPOCHS) for decisions in racing), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Appended", "DecidedBefore"]
    streams = await store.read_streams([here, there])
    assert len(streams) == 1, "the loser's events are not in the log"


async def test_a_batch_with_a_decided_command_is_refused_without_an_error_of_the_database(
    store: EventStore,
) -> None:
    first = received(grant("p-1"))
    (decision,) = await decide(store, [first])
    await store.append([decision], EPOCHS)
    beside = await decide(store, [received(grant("p-2"))])
    with pytest.raises(DecidedBefore) as refused:
        await store.append([*beside, decision], EPOCHS)
    assert refused.value.__cause__ is None, "the server's log would have a line for each repeat"
    assert (await store.read_streams(["p-1", "p-2"])).keys() == {"p-1"}
    await store.append(beside, EPOCHS)


async def test_a_conflict_leaves_nothing_of_the_whole_batch(store: EventStore) -> None:
    stale = await decide(store, [received(grant("p-1")), received(grant("p-2"))])
    await append(store, grant("p-1", "d-9"))
    with pytest.raises(Conflict):
        await store.append(stale, EPOCHS)
    assert "p-2" not in await store.read_streams(["p-2"])
    assert not await store.read_receipts([one.received.command_id for one in stale])


async def test_a_writer_with_a_stale_epoch_appends_nothing(
    store: EventStore, event_store_pool: Pool
) -> None:
    decisions = await decide(store, [received(grant(f"p-{n}")) for n in range(20)])
    partition = decisions[0].received.partition
    before = await event_store_pool.fetch("SELECT * FROM partitions ORDER BY partition")
    await event_store_pool.execute(
        "UPDATE partitions SET epoch = 1 WHERE partition = $1", partition
    )
    with pytest.raises(Fenced):
        await store.append(decisions, EPOCHS)
    assert await event_store_pool.fetchval("SELECT count(*) FROM events") == 0
    assert await event_store_pool.fetchval("SELECT count(*) FROM command_receipts") == 0
    after = await event_store_pool.fetch("SELECT * FROM partitions ORDER BY partition")
    assert [row["position"] for row in after] == [row["position"] for row in before]


async def test_a_taking_over_during_an_append_waits_for_it_or_fences_it(
    store: EventStore, event_store_pool: Pool
) -> None:
    decisions = await decide(store, [received(grant("p-1"))])
    partition = decisions[0].received.partition
    async with event_store_pool.acquire() as other, other.transaction():
        await other.execute(
            "UPDATE partitions SET epoch = epoch + 1 WHERE partition = $1", partition
        )
        appending = asyncio.create_task(store.append(decisions, EPOCHS))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        await eventually(lambda: other.fetchval(waiting))
    with pytest.raises(Fenced):
        await appending


async def test_overlapping_appends_never_show_a_later_position_first(
    store: EventStore, event_store_pool: Pool
) -> None:
    """A reader of "all after what I saw last" must never step over one that commits later."""
    patient = "p-1"
    partition = partition_of(patient, PARTITIONS)
    same = [f"q-{n}" for n in range(400) if partition_of(f"q-{n}", PARTITIONS) == partition]

    async def write(patients: Sequence[str]) -> None:
        for one in patients:
            await append(store, grant(one, "d-1", "all"))

    async def read(done: asyncio.Event) -> list[int]:
        seen: list[int] = []
        last_round = False
        while not last_round:
            last_round = done.is_set()
            seen += [e.position for e in await store.read_log(partition, len(seen), 500)]
        return seen

    done = asyncio.Event()
    readers = [asyncio.create_task(read(done)) for _ in range(2)]
    await asyncio.gather(*(write(same[n:60:4]) for n in range(4)))
    done.set()
    for seen in await asyncio.gather(*readers):
        assert seen == list(range(1, len(same[:60]) * 4 + 1))


async def test_times_never_go_back_within_a_partition_even_where_the_clock_does(
    store: EventStore, event_store_pool: Pool
) -> None:
    partition = partition_of("p-1", PARTITIONS)
    await event_store_pool.execute(
        "UPDATE partitions SET recorded_at = now() + interval '1 hour' WHERE partition = $1",
        partition,
    )
    ahead = await event_store_pool.fetchval(
        "SELECT recorded_at FROM partitions WHERE partition = $1", partition
    )
    appended = await append(store, grant("p-1"))
    assert [event.recorded_at for event in appended.events] == [ahead]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET type = 'ConsentRevoked'",
        "UPDATE events SET type = type WHERE false",
        "DELETE FROM events",
        "TRUNCATE events",
        "TRUNCATE events CASCADE",
    ],
)
async def test_the_log_can_not_be_rewritten_by_its_owner_either(
    store: EventStore, event_store_pool: Pool, statement: str
) -> None:
    await append(store, grant("p-1"))
    with pytest.raises(asyncpg.RestrictViolationError, match="the log cannot be rewritten"):
        await event_store_pool.execute(statement)
    assert await event_store_pool.fetchval("SELECT type FROM events") == "ConsentGranted"


async def test_a_receipt_gives_the_outcome_again_accepted_or_rejected(store: EventStore) -> None:
    commands = [
        received(grant("p-1", target="all")),
        received(grant("p-1")),
        received(revoke("p-2")),
    ]
    appended = await store.append(await decide(store, commands), EPOCHS)
    receipts = await store.read_receipts([one.command_id for one in commands])
    for one in commands:
        assert receipts[one.command_id].outcome == appended.outcome(one.command_id)
        assert receipts[one.command_id].fingerprint == one.fingerprint


async def test_the_published_position_only_moves_forward_and_only_for_the_owner(
    store: EventStore, event_store_pool: Pool
) -> None:
    async def mark(positions: dict[int, int], epochs: dict[int, int]) -> None:
        one = EventStore(event_store_pool)
        for partition, position in positions.items():
            one.note_published(partition, position)
        await one.mark_published(epochs)

    await mark({0: 5, 1: 7}, {0: 0, 1: 0})
    await mark({0: 3, 1: 8}, {0: 0})
    await mark({1: 9}, {1: 1})
    assert (await store.read_head(0)).published_position == 5
    assert (await store.read_head(1)).published_position == 7


async def test_an_append_tells_the_database_what_is_published_of_its_partition(
    store: EventStore,
) -> None:
    number = (await append(store, grant("p-1"), grant("p-1", "d-2"))).events[0].partition
    await store.open(number)
    store.note_published(number, 2)
    assert store.unmarked == 2
    await append(store, grant("p-1", "d-3"))
    assert (await store.read_head(number)).published_position == 2
    assert store.unmarked == 0


async def test_an_append_that_knows_of_less_published_takes_nothing_back(
    store: EventStore, event_store_pool: Pool
) -> None:
    number = (await append(store, grant("p-1"), grant("p-1", "d-2"))).events[0].partition
    store.note_published(number, 2)
    await append(store, grant("p-1", "d-3"))
    await append(EventStore(event_store_pool), grant("p-1", "d-4"))
    assert (await store.read_head(number)).published_position == 2


async def test_a_trial_that_is_cut_short_anywhere_leaves_its_connection_clean(
    store: EventStore,
) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: told.append(said["message"]))

    async def trial() -> None:
        async with store.on_trial() as tried:
            await append(tried, grant("p-tried"))

    for moment in range(100):
        trying = asyncio.create_task(trial())
        for _ in range(moment):
            await asyncio.sleep(0)
        trying.cancel()
        await asyncio.wait([trying])
    assert told == []
    assert (await store.read_streams(["p-tried"])).get("p-tried") is None
