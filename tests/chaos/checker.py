"""Compares what was sent and answered, the log, what a subscriber received, and the read model.

It shares no code with the services: it reads the contract in its own way, with the simplest model
of the domain that there is.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

from tests.chaos.evidence import Command, ConsentRow, Evidence, Json, LogRow, Receipt, Received

RECORD_TYPES = frozenset({"exams", "consultations", "conditions", "er_visits"})
EVENT_OF = {
    "AskConsent": "ConsentAsked",
    "GrantConsent": "ConsentGranted",
    "RevokeConsent": "ConsentRevoked",
}
PREFIX_OF = {"ConsentAsked": "by", "ConsentGranted": "to", "ConsentRevoked": "from"}
VERB_OF = {"ConsentAsked": "asked", "ConsentGranted": "granted", "ConsentRevoked": "revoked"}

MOST_UNANSWERED = 0.25
"""Of honest direct replies: a wire that is cut at that moment takes those under way with it."""
ANSWERED_BESIDE_NEIGHBOURS_S = 5.0
MOST_MB = 300


class Finding(NamedTuple):
    """Something that should not be, and where it shows."""

    what: str
    patient_id: str | None = None
    at: datetime | None = None
    """About when it went wrong, where that can be said."""


class Who(NamedTuple):
    """Somebody who may see something of a patient."""

    entity: str
    id: str


class Decided(NamedTuple):
    """What the model says of a command: why not, or which record types it touches."""

    error: str | None
    touched: frozenset[str]


@dataclass
class ModelPatient:
    """A patient as simple as can be."""

    granted: dict[Who, set[str]] = field(default_factory=lambda: defaultdict(set))
    requested: dict[Who, set[str]] = field(default_factory=lambda: defaultdict(set))
    version: int = 0

    def decide(self, command: Command) -> Decided:
        """Say what must come of a command now."""
        named = RECORD_TYPES if command.target == "all" else frozenset({command.target})
        granted = self.granted[Who(command.entity, command.entity_id)]
        revoking = command.type == "RevokeConsent"
        touched = named & granted if revoking else named - granted
        refusal = "consent_not_granted" if revoking else "consent_already_granted"
        return Decided(None if touched else refusal, touched)

    def apply(self, type_: str, who: Who, target: str) -> None:
        """Let an event have happened."""
        self.version += 1
        if type_ == "ConsentAsked":
            self.requested[who].add(target)
        elif type_ == "ConsentGranted":
            self.granted[who].add(target)
            self.requested[who].discard(target)
        else:
            self.granted[who].discard(target)

    def rows(self, patient_id: str) -> Iterator[ConsentRow]:
        """Give the rows that the read model must have of this patient."""
        for who in self.granted.keys() | self.requested.keys():
            permissions, requested = self.granted[who], self.requested[who]
            if permissions or requested:
                yield ConsentRow(
                    patient_id, *who, tuple(sorted(permissions)), tuple(sorted(requested))
                )


def check(evidence: Evidence) -> list[Finding]:
    """Return everything that is not as it must be; nothing where all is well."""
    story = Story(evidence)
    return [finding for one in CHECKS for finding in one(story)]


class Story:
    """The evidence, with what the checks look up."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.commands = {one.id: one for one in evidence.commands}
        self.receipts = {one.command_id: one for one in evidence.receipts}
        self.rows = {(one.partition, one.position): one for one in evidence.log}
        self.of_patient: dict[str, list[Command]] = defaultdict(list)
        for command in evidence.commands:
            self.of_patient[command.patient_id].append(command)

    def caused(self, receipt: Receipt) -> list[LogRow | None]:
        """Return the rows of the log that a receipt points at."""
        first = receipt.first_position or 0
        following = range(first, first + receipt.event_count)
        return [self.rows.get((receipt.partition, position)) for position in following]


def check_receipts(story: Story) -> Iterator[Finding]:
    """Every confirmed command has one outcome, and nothing else has one."""
    evidence = story.evidence
    for id_ in sorted(evidence.without_outcome_when_healed):
        command = story.commands[id_]
        yield Finding(f"confirmed, but lost: {command.type} {id_}", command.patient_id)
    if len(evidence.receipts) != len(story.receipts):
        yield Finding("there are command ids with more than one receipt")
    for id_ in story.commands.keys() - story.receipts.keys():
        yield Finding(f"command {id_} has no receipt", story.commands[id_].patient_id)
    for id_ in story.receipts.keys() - story.commands.keys():
        yield Finding(f"there is a receipt for {id_}, which nobody sent")
    for id_ in story.receipts.keys() & story.commands.keys():
        if story.receipts[id_].patient_id != story.commands[id_].patient_id:
            yield Finding(f"the receipt of {id_} names another patient")


def check_outcomes(story: Story) -> Iterator[Finding]:
    """One sender per patient, one command after the other: so the model knows every outcome."""
    for patient_id, commands in story.of_patient.items():
        model = ModelPatient()
        for command in commands:
            receipt = story.receipts.get(command.id)
            wrong = receipt and _wrong_outcome(story, model, command, receipt)
            if wrong:
                what = f"{command.type} {command.id}: {wrong}"
                yield Finding(what, patient_id, command.sent[0][0])
                break  # whatever follows would differ for this reason


def _wrong_outcome(
    story: Story, model: ModelPatient, command: Command, receipt: Receipt
) -> str | None:
    """Compare an outcome with the model's, and let the model move on."""
    expected = model.decide(command)
    version = model.version + len(expected.touched)
    if receipt.error != expected.error:
        return f"was {receipt.error or 'accepted'}, must be {expected.error or 'accepted'}"
    if (receipt.stream_version, receipt.event_count) != (version, len(expected.touched)):
        return (
            f"has version {receipt.stream_version} after {receipt.event_count} events,"
            f" must have {version} after {len(expected.touched)}"
        )
    who = Who(command.entity, command.entity_id)
    for target in expected.touched:
        model.apply(EVENT_OF[command.type], who, target)
    return _wrong_events(story, command, receipt, expected)


def _wrong_events(
    story: Story, command: Command, receipt: Receipt, expected: Decided
) -> str | None:
    rows = story.caused(receipt)
    if any(row is None or row.causation_id != command.id for row in rows):
        return "its events are not all where its receipt points"
    found = [row for row in rows if row is not None]
    if {row.data["target"] for row in found} != expected.touched:
        return f"caused {[row.data['target'] for row in found]}, not {sorted(expected.touched)}"
    versions = [row.stream_version for row in found]
    last = receipt.stream_version
    if versions != list(range(last - len(found) + 1, last + 1)):
        return f"its events have the versions {versions}, and its receipt {last}"
    if any(row.recorded_at != receipt.recorded_at for row in found):
        return "its events and its receipt were not recorded in one transaction"
    return None


def check_log(story: Story) -> Iterator[Finding]:
    """Positions and versions count 1, 2, 3; every event follows from its command."""
    by_partition: dict[int, list[LogRow]] = defaultdict(list)
    by_patient: dict[str, list[LogRow]] = defaultdict(list)
    for row in sorted(story.evidence.log, key=lambda row: (row.partition, row.position)):
        by_partition[row.partition].append(row)
        by_patient[row.stream_id].append(row)
    for partition, rows in by_partition.items():
        yield from _holes(f"positions of partition {partition}", [row.position for row in rows])
        if any(a.recorded_at > b.recorded_at for a, b in pairwise(rows)):
            yield Finding(f"times in the log of partition {partition} go backwards")
    for patient_id, rows in by_patient.items():
        yield from _holes("versions in log order", [row.stream_version for row in rows], patient_id)
    if len({row.event_id for row in story.evidence.log}) != len(story.evidence.log):
        yield Finding("there are events with the same id")
    yield from (found for row in story.evidence.log if (found := _strange_row(story, row)))


def _holes(what: str, found: Sequence[int], patient_id: str | None = None) -> Iterator[Finding]:
    for expected, number in enumerate(found, start=1):
        if number != expected:
            yield Finding(
                f"{what} are not 1, 2, 3 …: {number} where {expected} belongs", patient_id
            )
            return


def _strange_row(story: Story, row: LogRow) -> Finding | None:
    command = story.commands.get(row.causation_id)
    if command is None:
        return Finding(f"event {row.event_id} was caused by nothing that was sent", row.stream_id)
    prefix = PREFIX_OF[row.type]
    data = {
        "patient_id": command.patient_id,
        f"{prefix}_entity": command.entity,
        f"{prefix}_id": command.entity_id,
        "target": row.data.get("target"),
    }
    same = (row.type, row.data, row.stream_id) == (EVENT_OF[command.type], data, command.patient_id)
    home = crc32(row.stream_id.encode()) % story.evidence.partitions
    receipt = story.receipts.get(command.id)
    named = receipt is not None and row in story.caused(receipt)
    if same and named and row.partition == home and row.correlation_id == command.id:
        return None
    return Finding(f"event {row.event_id} does not follow from {command.id}", row.stream_id)


def check_replies(story: Story) -> Iterator[Finding]:
    """Whatever was replied for an id says the same, and what the log says."""
    replied: dict[str, Json] = {}
    for reply in story.evidence.replies:
        id_ = reply.command_id
        command = story.commands.get(id_)
        if command is None:
            yield Finding(f"there is a reply to {id_}, which nobody sent")
        elif replied.setdefault(id_, reply.content) != reply.content:
            was, now = replied[id_], reply.content
            yield Finding(f"two replies to {id_} differ: {was} and {now}", command.patient_id)
        elif wrong := _wrong_reply(story, reply.content, command):
            yield Finding(f"the reply to {id_} {wrong}: {reply.content}", command.patient_id)
    for id_ in story.commands.keys() - replied.keys():
        yield Finding(f"nothing was replied to {id_}", story.commands[id_].patient_id)


def _wrong_reply(story: Story, reply: Json, command: Command) -> str | None:
    receipt = story.receipts.get(command.id)
    if receipt is None:
        return "has no receipt"
    content = dict(reply)
    if receipt.error:
        content.pop("message", None)
        expected: Json = {"status": "rejected", "error": receipt.error, "details": []}
    else:
        expected = {
            "status": "accepted",
            "partition": receipt.partition,
            "version": receipt.stream_version,
            "events": [_summary(row) for row in story.caused(receipt) if row],
        }
    expected |= {"command_id": command.id, "patient_id": command.patient_id}
    return None if content == expected else f"is not what was recorded, which is {expected}"


def _summary(row: LogRow) -> Json:
    return {
        "id": row.event_id,
        "type": row.type,
        "target": row.data["target"],
        "version": row.stream_version,
        "position": row.position,
    }


def check_received(story: Story) -> Iterator[Finding]:
    """Without its repeats, what the subscriber received is the log, in order."""
    newest: dict[int, int] = defaultdict(int)
    for message in story.evidence.received:
        partition, position = message.body["partition"], message.body["position"]
        patient_id = message.body["subject"]
        if position > newest[partition] + 1:
            yield Finding(
                f"received position {position} of partition {partition}"
                f" after {newest[partition]}: a gap",
                patient_id,
            )
        newest[partition] = max(newest[partition], position)
        row = story.rows.get((partition, position))
        if row is None:
            yield Finding(f"received what is not in the log: {message.body}", patient_id)
        elif not _is_of_row(message, row):
            yield Finding(
                f"received {message.body} under {message.routing_key}, but the log has {row}",
                patient_id,
            )
    for partition in {row.partition for row in story.evidence.log}:
        head = max(row.position for row in story.evidence.log if row.partition == partition)
        if newest[partition] < head:
            yield Finding(
                f"received nothing of partition {partition} after {newest[partition]},"
                f" but its log goes to {head}"
            )


def _is_of_row(message: Received, row: LogRow) -> bool:
    body = dict(message.body)
    who = f"{PREFIX_OF[row.type]}_entity"
    key = f"{VERB_OF[row.type]}.{row.data[who]}.{row.data['target']}.{row.partition}"
    expected = {
        "specversion": "1.0",
        "id": row.event_id,
        "source": "consent/command-service",
        "type": row.type,
        "subject": row.stream_id,
        "datacontenttype": "application/json",
        "schemaversion": row.schema_version,
        "partition": row.partition,
        "position": row.position,
        "streamversion": row.stream_version,
        "correlationid": row.correlation_id,
        "causationid": row.causation_id,
        "data": row.data,
    }
    same_time = datetime.fromisoformat(body.pop("time")) == row.recorded_at
    same_envelope = (message.routing_key, message.message_id) == (key, row.event_id)
    return body == expected and same_time and same_envelope


def check_read_model(story: Story) -> Iterator[Finding]:
    """The read model is the fold of the log, no more and no less."""
    models: dict[str, ModelPatient] = defaultdict(ModelPatient)
    for row in sorted(story.evidence.log, key=lambda row: (row.stream_id, row.stream_version)):
        prefix = PREFIX_OF[row.type]
        who = Who(row.data[f"{prefix}_entity"], row.data[f"{prefix}_id"])
        models[row.stream_id].apply(row.type, who, row.data["target"])
    expected = {row for patient_id, model in models.items() for row in model.rows(patient_id)}
    found = set(story.evidence.consents)
    for row_missing in sorted(expected - found):
        yield Finding(f"the read model lacks {row_missing}", row_missing.patient_id)
    for row_more in sorted(found - expected):
        yield Finding(f"the read model has {row_more}, the log does not", row_more.patient_id)
    versions = {patient_id: model.version for patient_id, model in models.items()}
    for patient_id in sorted(versions.keys() | story.evidence.patient_versions.keys()):
        must, has = versions.get(patient_id), story.evidence.patient_versions.get(patient_id)
        if must != has:
            yield Finding(f"the read model has version {has} of a log of {must}", patient_id)


def check_cursors(story: Story) -> Iterator[Finding]:
    """Everything was published and projected, and nothing is parked."""
    evidence = story.evidence
    heads: dict[int, int] = dict.fromkeys(range(evidence.partitions), 0)
    for row in evidence.log:
        heads[row.partition] = max(heads[row.partition], row.position)
    cursors = {
        "position": evidence.positions,
        "published_position": evidence.published_positions,
        "checkpoint": evidence.checkpoints,
    }
    for name, found in cursors.items():
        for partition, head in heads.items():
            if found.get(partition, 0) != head:
                yield Finding(
                    f"{name} of partition {partition} is {found.get(partition)}, its log has {head}"
                )
    if evidence.parked:
        yield Finding(f"{evidence.parked} events are parked")


def check_dead_letters(story: Story) -> Iterator[Finding]:
    """Exactly what can't be read was set aside, and each answer to it is a refusal."""
    found = set(story.evidence.dead_letters)
    commands = {one.id: one for one in story.evidence.giants if one.type in EVENT_OF}
    for id_ in found - commands.keys():
        yield Finding(f"message {id_} is in the dead letters, and nothing is wrong with it")
    for id_, giant in commands.items():
        if giant.confirmed and id_ not in found:
            yield Finding(f"a {giant.type} of {giant.size:,} bytes is lost: {id_}")
    for giant in story.evidence.giants:
        for answer in giant.answers:
            if answer.get("status") not in ("rejected", "error"):
                yield Finding(f"a {giant.type} of {giant.size:,} bytes was answered by {answer}")


def check_repeats(story: Story) -> Iterator[Finding]:
    """The subscriber got few events again: no more than the faults can account for."""
    copies = Counter(one.body["id"] for one in story.evidence.received)
    repeats, allowed = copies.total() - len(copies), story.evidence.repeats_allowed
    if repeats > allowed:
        yield Finding(f"the subscriber got {repeats} repeats, where {allowed} may be")
    event_id, most = max(copies.items(), key=lambda item: item[1], default=("", 0))
    if most > story.evidence.copies_allowed:
        yield Finding(f"the subscriber got event {event_id} {most} times")


def check_takeovers(story: Story) -> Iterator[Finding]:
    """Where a worker's database falls silent, another one soon serves its partitions."""
    within = story.evidence.answered_within
    for one in story.evidence.takeovers:
        if one.seconds is None or one.seconds > within:
            took = "nobody" if one.seconds is None else f"others after {one.seconds:.1f} s"
            yield Finding(
                f"when the database of {one.worker} fell silent at {one.at:%H:%M:%S},"
                f" partition {one.partition} was served by {took}, not within {within:g} s"
            )


def check_forgeries(story: Story) -> Iterator[Finding]:
    """Forged addresses for replies cost those who are honest next to nothing."""
    for one in story.evidence.forgeries:
        if one.unanswered > one.asked * MOST_UNANSWERED:
            yield Finding(
                f"from {one.at:%H:%M:%S} on, beside forged addresses,"
                f" {one.unanswered} of {one.asked} direct replies were lost"
            )
        if one.never_answered:
            yield Finding(
                f"after the forged addresses of {one.at:%H:%M:%S},"
                f" {one.never_answered} commands got no direct reply, however often asked again"
            )


def check_neighbours(story: Story) -> Iterator[Finding]:
    """Where nothing but a bad neighbour is at work, commands are answered as ever."""
    replied: dict[str, datetime] = {}
    for reply in story.evidence.replies:
        replied.setdefault(reply.command_id, reply.at)
    waits = [
        (sent, (replied[one.id] - sent).total_seconds() if one.id in replied else float("inf"))
        for one in story.evidence.commands
        if one.sender.startswith("sender") and (sent := one.sent[0][0])
    ]
    for span in story.evidence.alone:
        meanwhile = [wait for sent, wait in waits if span.began <= sent <= span.ended]
        late = [wait for wait in meanwhile if wait > ANSWERED_BESIDE_NEIGHBOURS_S]
        if late:
            yield Finding(
                f"beside no other fault than {span.kind}, from {span.began:%H:%M:%S}"
                f" to {span.ended:%H:%M:%S}, {len(late)} of {len(meanwhile)} commands waited"
                f" longer than {ANSWERED_BESIDE_NEIGHBOURS_S:g} s, and {max(late):.1f} s at most"
            )


def check_memory(story: Story) -> Iterator[Finding]:
    """No message makes a worker large."""
    for where, most in story.evidence.largest_mb.items():
        if most > MOST_MB:
            yield Finding(f"{where} took {most:.0f} MB, where {MOST_MB} are enough")


def check_trespasses(story: Story) -> Iterator[Finding]:
    """Nobody wrote to a partition that another worker had taken."""
    yield from map(Finding, story.evidence.trespasses)


CHECKS: tuple[Callable[[Story], Iterator[Finding]], ...] = (
    check_receipts,
    check_outcomes,
    check_log,
    check_replies,
    check_received,
    check_read_model,
    check_cursors,
    check_trespasses,
    check_dead_letters,
    check_repeats,
    check_takeovers,
    check_forgeries,
    check_neighbours,
    check_memory,
)
