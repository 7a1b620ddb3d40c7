"""Compares what was sent and answered, the log, what a subscriber received, and the read model.

It shares no code with the services: it reads the contract in its own way, with the simplest model
of the domain that there is.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

from tests.chaos.evidence import Command, Evidence, Json, LogRow, Receipt, Received
from tests.chaos.patients import (
    END_CAME,
    EVENT_OF,
    PREFIX_OF,
    TOO_LATE,
    Decided,
    ModelPatient,
    Standing,
    Who,
    end_of,
    who_of,
)

VERB_OF = {
    "ConsentAsked": "asked",
    "ConsentGranted": "granted",
    "ConsentRevoked": "revoked",
    "ConsentDenied": "denied",
    "RequestWithdrawn": "withdrawn",
    END_CAME: "expired",
}

MOST_UNANSWERED = 0.25
"""Of honest direct replies: a wire that is cut at that moment takes those under way with it."""
ANSWERED_BESIDE_NEIGHBOURS_S = 5.0
MOST_MB = 300
CLOCKS_DIFFER = timedelta(milliseconds=50)
"""By so much at most, on one machine."""
TOLD_WITHIN = timedelta(seconds=15)
"""So long after an end its event may come, where the partition changed hands."""


class Finding(NamedTuple):
    """Something that should not be, and where it shows."""

    what: str
    patient_id: str | None = None
    at: datetime | None = None
    """About when it went wrong, where that can be said."""


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
        self._log_of: dict[str, list[LogRow]] = defaultdict(list)
        for row in sorted(evidence.log, key=lambda row: (row.stream_id, row.stream_version)):
            self._log_of[row.stream_id].append(row)

    @property
    def patients(self) -> set[str]:
        """Everybody of whom somebody spoke."""
        return self.of_patient.keys() | self._log_of.keys()

    def log_of(self, patient_id: str) -> list[LogRow]:
        """Return a patient's history."""
        return self._log_of.get(patient_id, [])

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
        if not _is_of_ends(story, story.receipts[id_]):
            yield Finding(f"there is a receipt for {id_}, which nobody sent")
    for id_ in story.receipts.keys() & story.commands.keys():
        if story.receipts[id_].patient_id != story.commands[id_].patient_id:
            yield Finding(f"the receipt of {id_} names another patient")


def _is_of_ends(story: Story, receipt: Receipt) -> bool:
    """Whether it is what the services write themselves, of ends that came."""
    rows = story.caused(receipt)
    return bool(rows) and all(
        row is not None
        and (row.type, row.causation_id, row.stream_id)
        == (END_CAME, receipt.command_id, receipt.patient_id)
        for row in rows
    )


def check_outcomes(story: Story) -> Iterator[Finding]:
    """One sender per patient, one command after the other: so the model knows every outcome."""
    for patient_id in story.patients:
        if wrong := Play(story, patient_id).to_the_end():
            yield wrong  # whatever follows would differ for this reason


class Play:
    """A patient's commands, and the ends that came between them, played by the model."""

    def __init__(self, story: Story, patient_id: str) -> None:
        self._story = story
        self._patient_id = patient_id
        self._model = ModelPatient()
        self._ends = [row for row in story.log_of(patient_id) if row.type == END_CAME]
        self._latest: list[datetime] = []
        """When the log of this patient was written, so far."""

    def to_the_end(self) -> Finding | None:
        """Play everything; return the first thing that is wrong."""
        for command in self._story.of_patient.get(self._patient_id, []):
            receipt = self._story.receipts.get(command.id)
            wrong = receipt and (
                self._ends_up_to(receipt.stream_version - receipt.event_count)
                or self._wrong_time(command, receipt)
                or self._wrong_outcome(command, receipt)
            )
            if wrong:
                what = f"{command.type} {command.id}: {wrong}"
                return Finding(what, self._patient_id, command.sent[0][0])
        wrong = self._ends_up_to(None) or self._missing_end()
        return Finding(wrong, self._patient_id) if wrong else None

    def _ends_up_to(self, version: int | None) -> str | None:
        """Let the ends have come that the log told of up to a version."""
        while self._ends and (version is None or self._ends[0].stream_version <= version):
            row = self._ends.pop(0)
            stands = Standing(who_of(row), row.data["target"], end_of(row) or row.recorded_at)
            if stands not in self._model.standing():
                return f"the log tells of an end that did not stand, by {row.event_id}: {row.data}"
            if row.recorded_at < stands.end:
                return f"the log tells of an end before it has come, by {row.event_id}"
            self._model.apply(row)
            self._latest.append(row.recorded_at)
        return None

    def _wrong_time(self, command: Command, receipt: Receipt) -> str | None:
        """Compare what was taken for past and for to come with when it was decided.

        That was after it was sent, and after what was recorded before, and when it was recorded
        itself, at the latest.
        """
        before = [one for one in self._latest if one < receipt.recorded_at]
        earliest = max([command.sent[0][0] - CLOCKS_DIFFER, *before])
        self._latest.append(receipt.recorded_at)
        for stands in self._model.standing():
            if stands.end <= earliest:
                return f"was decided after the end of {stands}, of which the log does not tell"
        if command.expires_at is None:
            return None
        if receipt.error == TOO_LATE:
            early = command.expires_at > receipt.recorded_at
            return f"was {TOO_LATE} before {command.expires_at}" if early else None
        late = command.expires_at <= earliest
        return f"must be {TOO_LATE}: {command.expires_at} had come" if late else None

    def _wrong_outcome(self, command: Command, receipt: Receipt) -> str | None:
        """Compare an outcome with the model's, and let the model move on."""
        expected = self._model.decide(command)
        if receipt.error == TOO_LATE and command.expires_at is not None:
            expected = Decided(TOO_LATE, frozenset(), frozenset({command.expires_at}))
        version = self._model.version + len(expected.touched)
        if receipt.error != expected.error:
            return f"was {receipt.error or 'accepted'}, must be {expected.error or 'accepted'}"
        if (receipt.stream_version, receipt.event_count) != (version, len(expected.touched)):
            return (
                f"has version {receipt.stream_version} after {receipt.event_count} events,"
                f" must have {version} after {len(expected.touched)}"
            )
        if wrong := _wrong_details(receipt, expected):
            return wrong
        if wrong := _wrong_events(self._story, command, receipt, expected):
            return wrong
        for row in self._story.caused(receipt):
            if row is not None:
                self._model.apply(row)
        return None

    def _missing_end(self) -> str | None:
        """Find an end that came long ago and still stands."""
        read_at = self._story.evidence.read_at
        for stands in self._model.standing():
            if read_at is not None and stands.end + TOLD_WITHIN <= read_at:
                return f"the log does not tell of the end of {stands}, at {read_at:%H:%M:%S}"
        return None


def _wrong_details(receipt: Receipt, expected: Decided) -> str | None:
    told = " ".join(one["message"] for one in receipt.details)
    lacking = [end for end in expected.ends if written(end) not in told]
    if lacking or len(receipt.details) < len(expected.ends):
        return f"does not tell of {lacking}: {receipt.details}"
    if not expected.ends and receipt.details:
        return f"tells of what has no end: {receipt.details}"
    return None


def written(moment: datetime) -> str:
    """Write a moment as the contract does."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


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
    home = crc32(row.stream_id.encode()) % story.evidence.partitions
    receipt = story.receipts.get(row.causation_id)
    named = receipt is not None and row in story.caused(receipt)
    placed = named and row.partition == home and row.correlation_id == row.causation_id
    if row.type == END_CAME and command is None:
        fields = {"patient_id", "to_entity", "to_id", "target", "expires_at"}
        if placed and row.data.keys() == fields and row.schema_version == 1:
            return None
        return Finding(f"event {row.event_id} is no end as it must be", row.stream_id)
    if command is None:
        return Finding(f"event {row.event_id} was caused by nothing that was sent", row.stream_id)
    prefix = PREFIX_OF[row.type]
    data = {
        "patient_id": command.patient_id,
        f"{prefix}_entity": command.entity,
        f"{prefix}_id": command.entity_id,
        "target": row.data.get("target"),
    }
    if command.expires_at is not None:
        data["expires_at"] = written(command.expires_at)
    version = 2 if row.type == "ConsentGranted" and command.expires_at else 1
    found = (row.type, row.data, row.stream_id, row.schema_version)
    same = found == (EVENT_OF[command.type], data, command.patient_id, version)
    if same and placed:
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
        expected: Json = {"status": "rejected", "error": receipt.error}
        expected["details"] = list(receipt.details)
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
    histories = {patient_id: story.log_of(patient_id) for patient_id in story.patients}
    models = {patient_id: _folded(rows) for patient_id, rows in histories.items() if rows}
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


def _folded(rows: Sequence[LogRow]) -> ModelPatient:
    model = ModelPatient()
    for row in rows:
        model.apply(row)
    return model


def check_held(story: Story) -> Iterator[Finding]:
    """Whoever asked who may see something was answered by comparison with the clock.

    The answer is that of the version which it names, at some moment between the question and it.
    """
    for one in story.evidence.held:
        model = _folded(story.log_of(one.patient_id)[: one.version])
        who, began = Who(one.entity, one.entity_id), one.asked_at - CLOCKS_DIFFER
        moment = began if one.has_consent else one.answered_at + CLOCKS_DIFFER
        if model.holds(who, one.target, moment) != one.has_consent:
            yield Finding(f"answered {one}, but had {dict(model.granted[who])}", one.patient_id)


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
    check_held,
    check_cursors,
    check_trespasses,
    check_dead_letters,
    check_repeats,
    check_takeovers,
    check_forgeries,
    check_neighbours,
    check_memory,
)
