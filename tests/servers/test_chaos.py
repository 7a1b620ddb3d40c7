"""A round of chaos on the real services, and that its checker finds what is planted."""

import ast
import inspect
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from uuid import UUID
from zlib import crc32

import asyncpg
import pytest

from shared.rabbitmq.connection import Broker, Properties, connect
from shared.rabbitmq.consumer import Consumer
from shared.rabbitmq.publishing import Outgoing, publish
from tests.chaos import checker, evidence, patients
from tests.chaos.checker import check
from tests.chaos.databases import set_up_witnesses, trespasses
from tests.chaos.evidence import (
    Command,
    ConsentRow,
    Evidence,
    Forgery,
    Giant,
    Json,
    LogRow,
    Receipt,
    Received,
    Reply,
    Span,
    Takeover,
)
from tests.chaos.faults import when_alone
from tests.chaos.links import open_wires
from tests.chaos.listeners import ReplyListener
from tests.chaos.neighbours import DirectAsker
from tests.chaos.plan import DECK, plan, repeats_allowed
from tests.chaos.senders import plain
from tests.sandbox import Sandbox
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

PARTITIONS = 2
BEGAN = datetime(2026, 11, 23, 8, tzinfo=UTC)
A_RECEIPT = """
INSERT INTO command_receipts
    (command_id, fingerprint, patient_id, partition, stream_version, event_count, recorded_at)
VALUES (gen_random_uuid(), '', 'p-1', 1, 0, 0, now())
"""
VERBS = {"ConsentAsked": "asked", "ConsentGranted": "granted", "ConsentRevoked": "revoked"}


@pytest.mark.timeout(700)
def test_a_minute_and_a_half_of_chaos_loses_doubles_and_reorders_nothing() -> None:
    round_ = [sys.executable, "-m", "tests.chaos", "--seconds", "85", "--seed", "20"]
    done = subprocess.run(round_, capture_output=True, text=True, timeout=690, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_the_databases_witness_who_writes_to_what_another_worker_owns(
    event_store_url: str, read_model_url: str
) -> None:
    await set_up_witnesses(event_store_url, read_model_url)
    own = "UPDATE partitions SET owner = 'two' WHERE partition = 1"
    for url, write in (
        (event_store_url, A_RECEIPT),
        (read_model_url, "UPDATE checkpoints SET position = 1"),
    ):
        two = await asyncpg.connect(url, server_settings={"application_name": "two"})
        await two.execute(own)
        if url == read_model_url:
            await two.execute("INSERT INTO checkpoints (partition) VALUES (1)")
        await two.execute(write)
        assert await trespasses(url) == []
        await two.execute("SET application_name = 'one'")
        await two.execute(write.replace("position = 1", "position = 2"))
        (noted,) = await trespasses(url)
        assert noted.startswith("one wrote to")
        assert noted.endswith("when two owned it")
        await two.close()


async def test_an_asker_knows_whether_its_connection_stayed_whole(deployment: Deployment) -> None:
    url = deployment.rabbitmq_url
    with open_wires() as wires:
        link = wires.lay(url)
        asker = DirectAsker("asker", link.url, 4, ReplyListener(url))
        command = make_command(7, "AskConsent", "exams")
        await asker.send(command, "first", plain(command))
        assert not asker.was_cut
        link.cut()

        async def was_cut() -> bool:
            return asker.was_cut

        await eventually(was_cut)
        await asker.close()


async def test_what_is_given_back_in_a_handover_keeps_its_order(sandbox: Sandbox) -> None:
    url = sandbox.broker.create_vhost("handover")
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 20}
    async with connect(url, name="test") as broker:
        channel = await broker.channel(confirms=True)
        await channel.queue_declare("orderly", durable=True, arguments=arguments)
        for number in range(1_000):
            message = Outgoing("", "orderly", str(number).encode(), Properties(delivery_mode=2))
            await publish(channel, message)
        taken = [number for _ in range(3) for number in await _take_and_hand_over(broker)]
    sandbox.broker.delete_vhost("handover")
    assert len(taken) >= 600
    assert taken == list(range(len(taken)))


async def _take_and_hand_over(broker: Broker) -> list[int]:
    """Stop just when the broker answers an acknowledgement with as many deliveries again."""
    consumer = Consumer(broker, prefetch=250)
    source = await consumer.open("orderly")

    async def all_that_may_come() -> bool:
        return source.in_hand == 250

    await eventually(all_that_may_come)
    items = await consumer.take(500)
    await consumer.settle(items)
    consumer.stop("orderly")
    await consumer.drained("orderly")
    await consumer.close("orderly")
    return [int(item.message.body) for item in items]


def id_of(number: int) -> str:
    return str(UUID(int=number, version=4))


def make_command(number: int, type_: str, target: str, patient_id: str = "p-1") -> Command:
    at = BEGAN + timedelta(seconds=number)
    who = ("doctor", "d-1")
    return Command(id_of(number), type_, patient_id, *who, target, "sender", [(at, "first")])


COMMANDS = (
    make_command(1, "AskConsent", "exams"),
    make_command(2, "GrantConsent", "all"),
    make_command(3, "GrantConsent", "exams"),
    make_command(4, "RevokeConsent", "exams"),
    make_command(5, "AskConsent", "exams"),
    make_command(6, "GrantConsent", "exams", "p-2"),
)
OUTCOMES: dict[int, tuple[str, ...]] = {
    1: ("exams",),
    2: ("conditions", "consultations", "er_visits", "exams"),
    3: (),
    4: ("exams",),
    5: ("exams",),
    6: ("exams",),
}
"""What each must touch; nothing where it must be rejected."""


class Bookkeeper:
    """Writes down what a deployment without faults would leave behind, in the plainest way."""

    def __init__(self) -> None:
        self.book = Evidence(partitions=PARTITIONS, commands=list(COMMANDS))
        self.receipts: list[Receipt] = []
        self.log: list[LogRow] = []
        self.replies: list[Reply] = []
        self.positions = dict.fromkeys(range(PARTITIONS), 0)
        self.versions: dict[str, int] = {}

    def write(self) -> Evidence:
        for number, command in enumerate(COMMANDS, start=1):
            self._decide(number, command, OUTCOMES[number])
        book = self.book
        book.receipts, book.log, book.replies = self.receipts, self.log, self.replies
        book.received = [received(row) for row in self.log]
        three = ("conditions", "consultations", "er_visits")
        book.consents = [
            ConsentRow("p-1", "doctor", "d-1", three, ("exams",)),
            ConsentRow("p-2", "doctor", "d-1", ("exams",), ()),
        ]
        book.patient_versions = self.versions
        book.positions = dict(self.positions)
        book.published_positions = dict(self.positions)
        book.checkpoints = dict(self.positions)
        book.answered_within = 13.0
        book.repeats_allowed, book.copies_allowed = 100, 8
        return book

    def _decide(self, number: int, command: Command, touched: tuple[str, ...]) -> None:
        partition = crc32(command.patient_id.encode()) % PARTITIONS
        at = BEGAN + timedelta(seconds=number, milliseconds=10)
        first = self.positions[partition] + 1
        rows = [self._row(command, target, partition, at) for target in touched]
        self.log += rows
        version = self.versions.get(command.patient_id, 0)
        error = None if touched else "consent_already_granted"
        self.receipts.append(
            Receipt(command.id, command.patient_id, partition, version,
                    first if touched else None, len(touched), error, None, at)
        )  # fmt: skip
        content = reply(command, partition, version, rows, error)
        self.replies.append(Reply(command.id, at, content))

    def _row(self, command: Command, target: str, partition: int, at: datetime) -> LogRow:
        self.positions[partition] += 1
        self.versions[command.patient_id] = self.versions.get(command.patient_id, 0) + 1
        kinds = {"Ask": "ConsentAsked", "Grant": "ConsentGranted", "Revoke": "ConsentRevoked"}
        type_ = kinds[command.type.removesuffix("Consent")]
        position = self.positions[partition]
        event_id = id_of(1000 + 100 * partition + position)
        data = {**command.body(), "target": target}
        version = self.versions[command.patient_id]
        return LogRow(partition, position, command.patient_id, version, event_id, type_, 1, data,
                      at, command.id, command.id)  # fmt: skip


def reply(
    command: Command, partition: int, version: int, rows: list[LogRow], error: str | None
) -> Json:
    ids: Json = {"command_id": command.id, "patient_id": command.patient_id}
    if error:
        return {**ids, "status": "rejected", "error": error, "message": "so it is", "details": []}
    events = [
        {"id": row.event_id, "type": row.type, "target": row.data["target"],
         "version": row.stream_version, "position": row.position}
        for row in rows
    ]  # fmt: skip
    return {
        **ids,
        "status": "accepted",
        "partition": partition,
        "version": version,
        "events": events,
    }


def received(row: LogRow) -> Received:
    key = f"{VERBS[row.type]}.doctor.{row.data['target']}.{row.partition}"
    body = {
        "specversion": "1.0", "id": row.event_id, "source": "consent/command-service",
        "type": row.type, "subject": row.stream_id, "time": row.recorded_at.isoformat(),
        "datacontenttype": "application/json", "schemaversion": 1, "partition": row.partition,
        "position": row.position, "streamversion": row.stream_version,
        "correlationid": row.correlation_id, "causationid": row.causation_id, "data": row.data,
    }  # fmt: skip
    return Received(key, row.event_id, body)


@pytest.fixture
def book() -> Evidence:
    return Bookkeeper().write()


def test_the_checker_finds_nothing_where_all_is_well(book: Evidence) -> None:
    assert check(book) == []


def test_the_checker_allows_repeats_of_events_and_of_replies(book: Evidence) -> None:
    first, second, *others = book.received
    book.received = [first, second, first, second, *others, second]
    book.replies = [*book.replies, *book.replies]
    assert check(book) == []


def test_the_checker_allows_what_the_new_neighbours_may_cost(book: Evidence) -> None:
    refused = [{"status": "rejected"}]
    book.giants = [
        Giant(id_of(70), "AskConsent", 16_000_000, confirmed=True, answers=refused),
        Giant(id_of(71), "GrantConsent", 16_000_000, confirmed=False),
        Giant(id_of(72), "ReadEvents", 6_000_000, confirmed=True, answers=[{"status": "error"}]),
    ]
    book.dead_letters = [id_of(70), id_of(70)]
    book.takeovers = [Takeover(BEGAN, "command_service-1", 1, 12.9)]
    book.forgeries = [Forgery(BEGAN, asked=20, unanswered=5, never_answered=0)]
    book.largest_mb = {"command-0": 299.0}
    book.alone = [Span("trap", BEGAN, BEGAN + timedelta(seconds=60))]
    assert check(book) == []


def test_a_neighbour_is_alone_where_nothing_else_is_or_was_just_before() -> None:
    def span(kind: str, began: int, ended: int) -> Span:
        return Span(kind, BEGAN + timedelta(seconds=began), BEGAN + timedelta(seconds=ended))

    alone = [span("trap", 5, 10), span("giant", 8, 9), span("forge", 36, 40)]
    beside = [span("trap", 13, 17), span("giant", 30, 31)]
    assert when_alone([*alone, *beside, span("kill", 11, 15), span("cut", 41, 42)]) == alone


def without_a_received_event(book: Evidence) -> None:
    book.received = [*book.received[:2], *book.received[3:]]


def without_the_last_received_event(book: Evidence) -> None:
    book.received = [one for one in book.received if one.body["streamversion"] != 7]


def received_in_another_order(book: Evidence) -> None:
    one, two, *others = book.received
    book.received = [two, one, *others]


def received_before_it_was_decided_otherwise(book: Evidence) -> None:
    zombie = deepcopy(book.received[-1])
    zombie.body["id"] = id_of(77)
    book.received = [*book.received, zombie]


def received_and_not_in_the_log(book: Evidence) -> None:
    zombie = deepcopy(book.received[-1])
    zombie.body["position"] += 1
    book.received = [*book.received, zombie]


def received_with_other_data(book: Evidence) -> None:
    book.received = deepcopy(book.received)
    book.received[3].body["data"] = {**book.received[3].body["data"], "to_id": "d-2"}


def logged_twice(book: Evidence) -> None:
    last = max((row for row in book.log if row.stream_id == "p-1"), key=lambda row: row.position)
    again = replace(
        last,
        position=last.position + 1,
        stream_version=last.stream_version + 1,
        event_id=id_of(99),
    )
    book.log = [*book.log, again]


def missing_in_the_log(book: Evidence) -> None:
    book.log = book.log[:-1]


def a_hole_in_the_positions(book: Evidence) -> None:
    *others, last = book.log
    book.log = [*others, replace(last, position=last.position + 1)]


def swapped_in_the_log(book: Evidence) -> None:
    one, two, *others = book.log
    book.log = [replace(one, position=two.position), replace(two, position=one.position), *others]


def rejected_wrongly(book: Evidence) -> None:
    wrong = replace(book.receipts[4], error="consent_already_granted", first_position=None)
    book.receipts = [*book.receipts[:4], wrong, *book.receipts[5:]]


def accepted_wrongly(book: Evidence) -> None:
    wrong = replace(book.receipts[2], error=None, first_position=1, event_count=1)
    book.receipts = [*book.receipts[:2], wrong, *book.receipts[3:]]


def decided_on_another_version(book: Evidence) -> None:
    wrong = replace(book.receipts[2], stream_version=4)
    book.receipts = [*book.receipts[:2], wrong, *book.receipts[3:]]


def decided_in_another_order(book: Evidence) -> None:
    one, two, *others = book.commands
    book.commands = [two, one, *others]


def without_a_receipt(book: Evidence) -> None:
    book.receipts = [one for one in book.receipts if one.error is None]


def lost_until_it_was_asked_again(book: Evidence) -> None:
    book.without_outcome_when_healed = frozenset({id_of(6)})


def a_receipt_of_nobody(book: Evidence) -> None:
    book.receipts = [*book.receipts, replace(book.receipts[2], command_id=id_of(55))]


def a_differing_reply(book: Evidence) -> None:
    first = book.replies[0]
    other = {**first.content, "version": 9}
    book.replies = [*book.replies, replace(first, content=other)]


def a_reply_that_is_not_the_outcome(book: Evidence) -> None:
    wrong = {**book.replies[0].content, "version": 9}
    book.replies = [replace(book.replies[0], content=wrong), *book.replies[1:]]


def never_answered(book: Evidence) -> None:
    book.replies = book.replies[1:]


def a_row_too_many_in_the_read_model(book: Evidence) -> None:
    book.consents = [*book.consents, ConsentRow("p-2", "nurse", "n-1", ("exams",), ())]


def a_row_too_few_in_the_read_model(book: Evidence) -> None:
    book.consents = book.consents[1:]


def an_outdated_row_in_the_read_model(book: Evidence) -> None:
    book.consents = [replace(book.consents[0], requested=()), *book.consents[1:]]


def an_outdated_version_in_the_read_model(book: Evidence) -> None:
    book.patient_versions = {**book.patient_versions, "p-1": 6}


def not_published_to_the_end(book: Evidence) -> None:
    book.published_positions = {**book.published_positions, 0: 0, 1: 0}


def not_projected_to_the_end(book: Evidence) -> None:
    book.checkpoints = {**book.checkpoints, 0: 0, 1: 0}


def something_parked(book: Evidence) -> None:
    book.parked = 1


def something_set_aside(book: Evidence) -> None:
    book.dead_letters = [id_of(1)]


def an_innocent_message_set_aside_beside_a_giant(book: Evidence) -> None:
    book.giants = [Giant(id_of(70), "AskConsent", 16_000_000, confirmed=True)]
    book.dead_letters = [id_of(70), id_of(71)]


def a_giant_that_is_nowhere(book: Evidence) -> None:
    book.giants = [Giant(id_of(70), "AskConsent", 16_000_000, confirmed=True)]


def a_giant_that_was_accepted(book: Evidence) -> None:
    answers = [{"status": "accepted"}]
    book.giants = [Giant(id_of(70), "ListConsents", 16_000_000, confirmed=True, answers=answers)]


def more_repeats_than_the_faults_can_account_for(book: Evidence) -> None:
    book.received = [*book.received, *book.received[:3]]
    book.repeats_allowed = 2


def one_event_again_and_again(book: Evidence) -> None:
    book.received = [*book.received, *([book.received[2]] * 8)]


def a_partition_that_nobody_took_over(book: Evidence) -> None:
    book.takeovers = [Takeover(BEGAN, "command_service-1", 1, None)]


def a_partition_that_was_taken_over_late(book: Evidence) -> None:
    book.takeovers = [Takeover(BEGAN, "command_service-1", 1, 13.5)]


def direct_replies_lost(book: Evidence) -> None:
    book.forgeries = [Forgery(BEGAN, asked=20, unanswered=6, never_answered=0)]


def direct_replies_that_stay_away(book: Evidence) -> None:
    book.forgeries = [Forgery(BEGAN, asked=0, unanswered=0, never_answered=1)]


def answered_late_beside_a_neighbour(book: Evidence) -> None:
    last = book.replies[-1]
    book.replies = [*book.replies[:-1], replace(last, at=last.at + timedelta(seconds=5))]
    book.alone = [Span("trap", BEGAN, BEGAN + timedelta(seconds=60))]


def a_worker_grown_large(book: Evidence) -> None:
    book.largest_mb = {"command-0": 301.0}


def written_by_somebody_else(book: Evidence) -> None:
    book.trespasses = ["one wrote to events of partition 0, when two owned it"]


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (without_a_received_event, "a gap"),
        (without_the_last_received_event, "a gap"),
        (received_in_another_order, "a gap"),
        (received_before_it_was_decided_otherwise, "but the log has"),
        (received_and_not_in_the_log, "received what is not in the log"),
        (received_with_other_data, "but the log has"),
        (logged_twice, "are not all where its receipt points"),
        (missing_in_the_log, "received what is not in the log"),
        (a_hole_in_the_positions, "are not 1, 2, 3"),
        (swapped_in_the_log, "versions in log order are not 1, 2, 3"),
        (rejected_wrongly, "must be accepted"),
        (accepted_wrongly, "must be consent_already_granted"),
        (decided_on_another_version, "has version 4 after 0 events, must have 5"),
        (decided_in_another_order, "must have 4 after 4"),
        (without_a_receipt, "has no receipt"),
        (lost_until_it_was_asked_again, "confirmed, but lost"),
        (a_receipt_of_nobody, "which nobody sent"),
        (a_differing_reply, "two replies"),
        (a_reply_that_is_not_the_outcome, "is not what was recorded"),
        (never_answered, "nothing was replied"),
        (a_row_too_many_in_the_read_model, "the read model has"),
        (a_row_too_few_in_the_read_model, "the read model lacks"),
        (an_outdated_row_in_the_read_model, "the read model lacks"),
        (an_outdated_version_in_the_read_model, "has version 6 of a log of 7"),
        (not_published_to_the_end, "published_position of partition"),
        (not_projected_to_the_end, "checkpoint of partition"),
        (something_parked, "parked"),
        (something_set_aside, "nothing is wrong with it"),
        (an_innocent_message_set_aside_beside_a_giant, "nothing is wrong with it"),
        (a_giant_that_is_nowhere, "is lost"),
        (a_giant_that_was_accepted, "was answered by"),
        (more_repeats_than_the_faults_can_account_for, "3 repeats, where 2 may be"),
        (one_event_again_and_again, "9 times"),
        (a_partition_that_nobody_took_over, "by nobody, not within 13 s"),
        (a_partition_that_was_taken_over_late, "by others after 13.5 s, not within 13 s"),
        (direct_replies_lost, "6 of 20 direct replies were lost"),
        (direct_replies_that_stay_away, "got no direct reply, however often"),
        (answered_late_beside_a_neighbour, "1 of 6 commands waited longer than 5 s"),
        (a_worker_grown_large, "took 301 MB"),
        (written_by_somebody_else, "when two owned it"),
    ],
)
def test_the_checker_finds_what_is_planted(
    book: Evidence, plant: Callable[[Evidence], None], said: str
) -> None:
    plant(book)
    assert any(said in finding.what for finding in check(book))


def test_the_checker_shares_no_code_with_the_services() -> None:
    reached = {one for part in (checker, evidence, patients) for one in imports_of(part)}
    assert {one for one in reached if one.partition(".")[0] not in sys.stdlib_module_names} == {
        "tests.chaos.evidence",
        "tests.chaos.patients",
    }


def imports_of(module: ModuleType) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_the_same_seed_plans_the_same_faults_and_each_kind_within_a_minute() -> None:
    planned = plan(3, 60)
    assert planned == plan(3, 60)
    assert planned != plan(4, 60)
    assert {one.kind for one in planned} == set(DECK)


@pytest.mark.parametrize("seed", range(5))
def test_a_minute_has_each_bad_neighbour_in_every_shape(seed: int) -> None:
    shapes = {(one.kind, one.target, one.variant) for one in plan(seed, 60)}
    assert {kind_and_target[:2] for kind_and_target in shapes} >= {
        ("stall", "command"), ("stall", "projection"), ("trap", "subscriber"),
    }  # fmt: skip
    assert shapes >= {
        *(("giant", "giants", type_) for type_ in ("AskConsent", "ReadEvents", "ListConsents")),
        *(("forge", "reply_to", process) for process in ("truncated", "of nowhere")),
        *(("block", "broker", resource) for resource in ("memory", "disk")),
    }


def test_a_plan_of_some_kinds_is_that_of_all_without_the_others() -> None:
    some = plan(3, 60, only=("trap", "giant"))
    assert {one.kind for one in some} == {"trap", "giant"}
    assert some == [one for one in plan(3, 60) if one.kind in ("trap", "giant")]


def test_the_repeats_that_are_allowed_follow_from_what_happened() -> None:
    assert repeats_allowed(Counter({"kill": 2, "trap": 1})) > repeats_allowed(Counter({"kill": 2}))
    assert repeats_allowed(Counter({"left out": 5, "delay": 3})) == 0
