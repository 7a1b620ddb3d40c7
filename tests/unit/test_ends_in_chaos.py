"""The checker of chaos knows what must come of ends, denials and withdrawals."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID
from zlib import crc32

import pytest

from tests.chaos.checker import check, written
from tests.chaos.evidence import (
    Command,
    Evidence,
    Held,
    Json,
    LogRow,
    Receipt,
    Received,
    Reply,
)
from tests.chaos.patients import EVENT_OF, ModelPatient

BEGAN: Final = datetime(2026, 11, 23, 8, tzinfo=UTC)
PATIENT: Final = "p-1"
PARTITION: Final = crc32(PATIENT.encode()) % 2
FACTS: Final = {
    "ConsentAsked": "asked",
    "ConsentGranted": "granted",
    "ConsentRevoked": "revoked",
    "ConsentExpired": "expired",
    "ConsentDenied": "denied",
    "RequestWithdrawn": "withdrawn",
}


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def id_of(number: int) -> str:
    return str(UUID(int=number, version=4))


@dataclass
class Bookkeeper:
    """Writes down what a deployment left behind: it is told what came of each command."""

    commands: list[Command] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    log: list[LogRow] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)

    def command(self, second: int, type_: str, *, until: float | None = None) -> None:
        """Let a doctor's or the patient's command about exams be accepted."""
        command = self._sent(second, type_, until)
        data = dict(command.body())
        if command.expires_at is not None:
            data["expires_at"] = written(command.expires_at)
        version = 2 if type_ == "GrantConsent" and until is not None else 1
        self._record(command.id, EVENT_OF[type_], version, data, at(second + 0.01))
        self._reply(command)

    def refused(
        self, second: int, type_: str, error: str, *, until: float | None = None, told: float = 0
    ) -> None:
        """Let such a command be refused, and an end be told with it."""
        command = self._sent(second, type_, until)
        details = [{"field": "expires_at", "message": f"until {written(at(told))}"}] if told else []
        version = len(self.log)
        self.receipts.append(
            Receipt(command.id, PATIENT, PARTITION, version, None, 0, error, "no",
                    at(second + 0.01), details)
        )  # fmt: skip
        self._reply(command)

    def end(self, came: float, second: float) -> None:
        """Let the log tell of an end."""
        data = {"patient_id": PATIENT, "to_entity": "doctor", "to_id": "d-1", "target": "exams",
                "expires_at": written(at(came))}  # fmt: skip
        id_ = id_of(500 + len(self.log))
        self._record(id_, "ConsentExpired", 1, data, at(second))

    def says(self, second: float, version: int, has_consent: bool) -> None:
        """Let somebody ask whether the doctor may see the exams, and be answered."""
        who = (PATIENT, "doctor", "d-1", "exams")
        self.held.append(Held(at(second), at(second + 0.02), *who, version, has_consent))

    def book(self) -> Evidence:
        """Write it all down, read well after everything."""
        model = ModelPatient()
        for row in self.log:
            model.apply(row)
        head = dict.fromkeys(range(2), 0) | {PARTITION: len(self.log)}
        return Evidence(
            partitions=2,
            commands=self.commands,
            replies=self.replies,
            receipts=self.receipts,
            log=self.log,
            held=self.held,
            read_at=at(60),
            received=[_received(row) for row in self.log],
            consents=list(model.rows(PATIENT)),
            patient_versions={PATIENT: len(self.log)},
            positions=dict(head),
            published_positions=dict(head),
            checkpoints=dict(head),
            answered_within=13.0,
            repeats_allowed=100,
            copies_allowed=8,
        )

    def _sent(self, second: int, type_: str, until: float | None) -> Command:
        end = None if until is None else at(until)
        sent = [(at(second), "first")]
        who = ("doctor", "d-1", "exams", "sender")
        command = Command(id_of(len(self.commands) + 1), type_, PATIENT, *who, sent, end)
        self.commands.append(command)
        return command

    def _record(self, cause: str, type_: str, version: int, data: Json, when: datetime) -> None:
        place = len(self.log) + 1
        self.log.append(
            LogRow(PARTITION, place, PATIENT, place, id_of(1000 + place), type_, version, data,
                   when, cause, cause)
        )  # fmt: skip
        self.receipts.append(Receipt(cause, PATIENT, PARTITION, place, place, 1, None, None, when))

    def _reply(self, command: Command) -> None:
        receipt = self.receipts[-1]
        content: Json = {"command_id": command.id, "patient_id": PATIENT}
        if receipt.error:
            content |= {"status": "rejected", "error": receipt.error, "message": "no",
                        "details": list(receipt.details)}  # fmt: skip
        else:
            row = self.log[-1]
            summary = {"id": row.event_id, "type": row.type, "target": "exams",
                       "version": row.stream_version, "position": row.position}  # fmt: skip
            content |= {"status": "accepted", "partition": PARTITION,
                        "version": row.stream_version, "events": [summary]}  # fmt: skip
        self.replies.append(Reply(command.id, receipt.recorded_at, content))


def _received(row: LogRow) -> Received:
    body = {
        "specversion": "1.0", "id": row.event_id, "source": "consent/command-service",
        "type": row.type, "subject": row.stream_id, "time": row.recorded_at.isoformat(),
        "datacontenttype": "application/json", "schemaversion": row.schema_version,
        "partition": row.partition, "position": row.position, "streamversion": row.stream_version,
        "correlationid": row.correlation_id, "causationid": row.causation_id, "data": row.data,
    }  # fmt: skip
    return Received(f"{FACTS[row.type]}.doctor.exams.{PARTITION}", row.event_id, body)


def a_life() -> Bookkeeper:
    """Tell of everything that can happen, as it must."""
    keeper = Bookkeeper()
    keeper.command(1, "AskConsent", until=600)
    keeper.command(2, "DenyConsent")
    keeper.refused(3, "WithdrawRequest", "consent_not_requested")
    keeper.command(4, "AskConsent")
    keeper.command(5, "WithdrawRequest")
    keeper.command(6, "GrantConsent", until=8)
    keeper.refused(7, "GrantConsent", "consent_already_granted", until=7.5, told=8)
    keeper.command(7, "GrantConsent", until=10)
    keeper.says(9.9, 6, has_consent=True)
    keeper.says(9.99, 6, has_consent=True)
    keeper.says(9.99, 6, has_consent=False)
    keeper.says(10.2, 6, has_consent=False)
    keeper.end(10, 10.4)
    keeper.command(11, "GrantConsent", until=20)
    keeper.command(12, "RevokeConsent")
    keeper.refused(13, "GrantConsent", "expiry_not_in_the_future", until=13.005, told=13.005)
    keeper.command(14, "GrantConsent", until=86_400)
    keeper.command(15, "GrantConsent")
    keeper.refused(16, "AskConsent", "consent_already_granted", until=90_000)
    return keeper


def test_the_checker_finds_nothing_where_ends_come_as_they_must() -> None:
    assert check(a_life().book()) == []


def told_twice() -> Bookkeeper:
    keeper = a_life()
    keeper.end(10, 17)
    return keeper


def told_twice_at_once() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    keeper.end(8, 8.1)
    keeper.end(8, 8.1)
    return keeper


def never_told() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    return keeper


def not_told_before_what_followed() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    keeper.command(9, "AskConsent")
    keeper.end(8, 9.5)
    return keeper


def told_of_what_was_revoked() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    keeper.command(2, "RevokeConsent")
    keeper.end(8, 8.4)
    return keeper


def told_of_what_was_extended() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    keeper.command(2, "GrantConsent", until=80)
    keeper.end(8, 8.4)
    return keeper


def told_before_it_came() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    keeper.end(8, 7.999)
    return keeper


def told_without_a_receipt() -> Bookkeeper:
    keeper = a_life()
    keeper.receipts = [one for one in keeper.receipts if one.command_id < id_of(500)]
    return keeper


def refused_as_over_too_early() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.refused(1, "GrantConsent", "expiry_not_in_the_future", until=8, told=8)
    return keeper


def granted_though_over() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(9, "GrantConsent", until=8)
    keeper.end(8, 9.5)
    return keeper


def shortened() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    keeper.command(2, "GrantConsent", until=5)
    keeper.end(5, 5.1)
    return keeper


def revoked_though_over() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    keeper.end(8, 8.1)
    keeper.command(9, "RevokeConsent")
    return keeper


def an_end_that_is_not_named() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=50)
    keeper.refused(2, "GrantConsent", "consent_already_granted", until=40)
    return keeper


def an_end_in_a_version_that_knows_none() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "GrantConsent", until=8)
    keeper.log = [replace(keeper.log[0], schema_version=1)]
    keeper.end(8, 8.1)
    return keeper


def denied_what_nobody_asks_for() -> Bookkeeper:
    keeper = Bookkeeper()
    keeper.command(1, "DenyConsent")
    return keeper


def answered_yes_after_the_end() -> Bookkeeper:
    keeper = a_life()
    keeper.says(10.2, 6, has_consent=True)
    return keeper


def answered_no_before_the_end() -> Bookkeeper:
    keeper = a_life()
    keeper.says(9.8, 6, has_consent=False)
    return keeper


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (told_twice, "the log tells of an end that did not stand"),
        (told_twice_at_once, "the log tells of an end that did not stand"),
        (never_told, "the log does not tell of the end"),
        (not_told_before_what_followed, "was decided after the end of"),
        (told_of_what_was_revoked, "the log tells of an end that did not stand"),
        (told_of_what_was_extended, "the log tells of an end that did not stand"),
        (told_before_it_came, "the log tells of an end before it has come"),
        (told_without_a_receipt, "is no end as it must be"),
        (refused_as_over_too_early, "was expiry_not_in_the_future before"),
        (granted_though_over, "must be expiry_not_in_the_future"),
        (shortened, "was accepted, must be consent_already_granted"),
        (revoked_though_over, "was accepted, must be consent_not_granted"),
        (an_end_that_is_not_named, "does not tell of"),
        (an_end_in_a_version_that_knows_none, "does not follow from"),
        (denied_what_nobody_asks_for, "was accepted, must be consent_not_requested"),
        (answered_yes_after_the_end, "has_consent=True"),
        (answered_no_before_the_end, "has_consent=False"),
    ],
)
def test_the_checker_finds_an_end_that_is_not_as_it_must_be(
    plant: Callable[[], Bookkeeper], said: str
) -> None:
    found = check(plant().book())
    assert any(said in finding.what for finding in found), found
