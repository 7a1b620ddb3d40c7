"""`consent grant … --until | --for`, `deny` and `withdraw`: what is typed, sent and said."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_cli import consent
from tests.servers.test_watch import watching
from tests.support.amqp import open_client
from tests.support.deployment import Deployment
from tests.support.standing import standing_deployment

INDIA = "<+0530>-5:30"
"""A zone as POSIX writes it, which needs no database of zones."""


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, "ends_on_the_command_line", migrated) as made:
        yield made


@pytest.fixture
def patient_id() -> str:
    return f"p-{uuid4()}"


async def events_of(running: Deployment, patient_id: str) -> list[dict[str, Any]]:
    async with open_client(running.rabbitmq_url, PARTITIONS) as client:
        number = int(client.key("AskConsent", patient_id).split(".")[1])
        page = await client.query("ReadEvents", partition=number, patient_id=patient_id)
        return list(page["events"])


@pytest.mark.parametrize(
    ("typed", "said", "sent"),
    [
        ("2127-01-01", "2127-01-01T00:00:00+05:30", "2126-12-31T18:30:00.000000Z"),
        ("2127-01-01T12:00:00Z", "2127-01-01T17:30:00+05:30", "2127-01-01T12:00:00.000000Z"),
        ("2127-01-01T12:00:00+09:00", "2127-01-01T08:30:00+05:30", "2127-01-01T03:00:00.000000Z"),
    ],
)
@pytest.mark.parametrize(("verb", "event"), [("ask", "ConsentAsked"), ("grant", "ConsentGranted")])
async def test_a_day_begins_where_one_is_and_the_answer_says_in_which_zone(
    running: Deployment, patient_id: str, verb: str, event: str, typed: str, said: str, sent: str
) -> None:
    words = (verb, patient_id, "doctor", "d-1", "exams", "--until", typed)
    done = consent(running, *words, TZ=INDIA)
    assert done.stdout == f"accepted {event} exams until {said}; version 1\n", done
    (recorded,) = await events_of(running, patient_id)
    assert recorded["data"]["expires_at"] == sent


async def test_for_so_long_is_until_the_whole_second_after_it(
    running: Deployment, patient_id: str
) -> None:
    began = datetime.now(UTC)
    done = consent(running, "grant", patient_id, "doctor", "d-1", "exams", "--for", "90d", TZ=INDIA)
    (recorded,) = await events_of(running, patient_id)
    end = datetime.fromisoformat(recorded["data"]["expires_at"])
    assert timedelta(days=90) <= end - began <= timedelta(days=90, seconds=61)
    assert end.microsecond == 0
    assert f"until {end.astimezone(INDIAN).isoformat()};" in done.stdout


INDIAN = datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo


async def test_an_end_that_stands_is_told_and_a_later_one_or_none_extends_it(
    running: Deployment, patient_id: str
) -> None:
    who = (patient_id, "doctor", "d-1", "exams")
    steps = [
        (("grant", *who, "--until", "2127-01-01T00:00:00Z"), 0, "accepted ConsentGranted exams"),
        (
            ("grant", *who, "--until", "2126-12-31T23:59:59Z"),
            1,
            "expires_at: exams is granted until 2127-01-01T00:00:00.000000Z",
        ),
        (("ask", *who, "--until", "2127-01-01T00:00:00Z"), 1, "rejected consent_already_granted"),
        (("ask", *who, "--until", "2127-01-02T00:00:00Z"), 0, "accepted ConsentAsked exams"),
        (("grant", *who, "--until", "2127-01-02T00:00:00Z"), 0, "accepted ConsentGranted exams"),
        (("grant", *who), 0, "accepted ConsentGranted exams; version 4"),
        (("grant", *who, "--for", "1d"), 1, "rejected consent_already_granted"),
    ]
    for words, code, said in steps:
        done = consent(running, *words)
        assert (done.returncode, said in done.stdout) == (code, True), (words, done)


def test_a_request_is_denied_and_withdrawn(running: Deployment, patient_id: str) -> None:
    who = (patient_id, "nurse", "n-1")
    steps = [
        (("deny", *who), 1, "rejected consent_not_requested: nurse n-1 does not ask for consent"),
        (("ask", *who, "exams"), 0, "version 1"),
        (("deny", *who), 0, "accepted ConsentDenied exams; version 2"),
        (("ask", *who, "exams"), 0, "version 3"),
        (("withdraw", *who, "exams"), 0, "accepted RequestWithdrawn exams; version 4"),
        (("withdraw", *who, "exams"), 1, "rejected consent_not_requested"),
    ]
    for words, code, said in steps:
        done = consent(running, *words)
        assert (done.returncode, said in done.stdout) == (code, True), (words, done)


async def test_watch_and_events_say_until_when(
    running: Deployment, patient_id: str, tmp_path: Path
) -> None:
    who = (patient_id, "doctor", "d-1", "exams")
    for verb in ("ask", "grant"):
        consent(running, verb, *who, "--until", "2127-01-01T00:00:00Z")
    consent(running, "ask", patient_id, "nurse", "n-2", "exams")
    consent(running, "deny", patient_id, "nurse", "n-2")
    consent(running, "ask", patient_id, "nurse", "n-2", "exams")
    consent(running, "withdraw", patient_id, "nurse", "n-2")
    with watching(running, tmp_path, "--from-origin", "--patient", patient_id) as watch:
        await watch.shows("no longer asked by")
        lines = [line.split(patient_id)[1].strip() for line in watch.lines]
    assert lines == [
        "asked by doctor d-1  exams  until 2127-01-01T00:00:00.000000Z",
        "granted to doctor d-1  exams  until 2127-01-01T00:00:00.000000Z",
        "asked by nurse n-2  exams",
        "denied to nurse n-2  exams",
        "asked by nurse n-2  exams",
        "no longer asked by nurse n-2  exams",
    ]
    async with open_client(running.rabbitmq_url, PARTITIONS) as client:
        number = client.key("AskConsent", patient_id).split(".")[1]
    shown = consent(running, "events", number, "--patient", patient_id, COLUMNS="160").stdout
    assert shown.count("until 2127-01-01T00:00:00.000000Z") == 2


async def test_lists_and_checks_say_until_when(running: Deployment, patient_id: str) -> None:
    who = (patient_id, "doctor", "d-1")
    consent(running, "grant", *who, "exams", "--until", "2127-01-01", TZ="UTC0")
    consent(running, "grant", *who, "conditions")
    consent(running, "ask", *who, "er_visits", "--until", "2127-01-02", TZ="UTC0")
    here = {"TZ": INDIA, "COLUMNS": "160"}
    wait = ("--min-version", "3")
    listed = " ".join(consent(running, "list", patient_id, *wait, **here).stdout.split())
    assert "conditions, exams until 2127-01-01T05:30:00+05:30" in listed
    assert "er_visits until 2127-01-02T05:30:00+05:30" in listed
    for records, said in (
        ("exams", "yes until 2127-01-01T05:30:00+05:30, as of version 3\n"),
        ("conditions", "yes, as of version 3\n"),
        ("er_visits", "no, as of version 3\n"),
    ):
        assert consent(running, "check", *who, records, *wait, **here).stdout == said
    later = ("--at", "2127-01-01T00:00:00Z")
    assert consent(running, "check", *who, "exams", *later, **here).stdout == (
        "no at 2127-01-01T00:00:00.000000Z, as of version 3\n"
    )
