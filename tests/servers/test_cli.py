"""The `consent` command, against real workers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support import warm
from tests.support.deployment import Deployment, open_deployment

CONSENT = Path(sys.executable).with_name("consent")


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with open_deployment(sandbox, "cli", partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        made.start_both()
        yield made


def consent(
    deployment: Deployment, *arguments: str, **more: str
) -> "subprocess.CompletedProcess[str]":
    return warm.run([CONSENT, *arguments], deployment.environment(**more))


def test_a_whole_conversation_on_the_command_line(running: Deployment) -> None:
    steps = [
        (("list", "p-1"), 0, "Patient p-1, version 0"),
        (("ask", "p-1", "doctor", "d-1", "exams"), 0, "accepted ConsentAsked exams; version 1"),
        (("check", "p-1", "doctor", "d-1", "exams"), 1, "no"),
        (("grant", "p-1", "doctor", "d-1", "exams"), 0, "accepted ConsentGranted exams; version 2"),
        (("grant", "p-1", "doctor", "d-1", "exams"), 1, "rejected consent_already_granted"),
        (
            ("check", "p-1", "doctor", "d-1", "exams", "--min-version", "2"),
            0,
            "yes, as of version 2",
        ),
        (("check", "p-1", "doctor", "d-1"), 1, "no, as of version 2"),
        (("revoke", "p-1", "doctor", "d-1"), 0, "accepted ConsentRevoked exams; version 3"),
        (("revoke", "p-1", "doctor", "d-1"), 1, "rejected consent_not_granted"),
        (("events", "3"), 0, "ConsentRevoked"),
    ]
    for arguments, code, said in steps:
        done = consent(running, *arguments)
        assert (done.returncode, said in done.stdout) == (code, True), (arguments, done)


def test_json_is_what_was_received_on_one_line(running: Deployment) -> None:
    command_id = "0f0e0d0c-0b0a-4908-8706-050403020100"
    arguments = ("grant", "p-2", "nurse", "n-1", "--json", "--command-id", command_id)
    first = json.loads(consent(running, *arguments).stdout)
    again = json.loads(consent(running, *arguments).stdout)
    assert first == again
    assert (first["command_id"], first["version"]) == (command_id, 4)

    listed = consent(running, "list", "p-2", "--json", "--min-version", "4").stdout
    assert json.loads(listed)["consents"] == [
        {
            "entity_name": "nurse",
            "entity_id": "n-1",
            "permissions": ["conditions", "consultations", "er_visits", "exams"],
            "requested": [],
        }
    ]
    page = json.loads(
        consent(
            running,
            *("events", str(first["partition"]), "--patient", "p-2", "--limit", "2", "--json"),
        ).stdout
    )
    assert [event["streamversion"] for event in page["events"]] == [1, 2]
    assert page["head"] >= 4


def test_an_id_that_looks_like_markup_is_shown_as_it_is(running: Deployment) -> None:
    assert consent(running, "grant", "p-3", "doctor", "[red]d[/red]").returncode == 0
    assert "[red]d[/red]" in consent(running, "list", "p-3", "--min-version", "4").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("grant", "p-1", "patient", "p-1"), 2, "to_id must not be the patient's own id"),
        (("grant", " p-1", "doctor", "d-1"), 2, "patient_id must not begin or end with white"),
        (("grant", "p-1", "friend", "f-1"), 2, "'friend' is not one of"),
        (("grant", "p-1", "doctor"), 2, "Missing argument"),
        (("events", "999"), 2, "the query is not valid: partition"),
        (("list", "p-1", "--within", "inf"), 2, "Invalid value for '--within'"),
        (
            ("list", "p-1", "--min-version", "99", "--within", "0.3"),
            3,
            "no answer to ListConsents within",
        ),
    ],
)
def test_wrong_use_is_said_clearly(
    running: Deployment, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    done = consent(running, *arguments)
    assert done.returncode == code
    assert complaint in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_broker_that_is_not_there_is_one_clear_line(running: Deployment) -> None:
    done = consent(running, "list", "p-1", RABBITMQ_URL="amqp://u:secret@127.0.0.1:1/")
    assert done.returncode == 3
    assert done.stderr.startswith("error: the broker is not reached:")
    assert "secret" not in done.stderr


def test_the_partition_is_told_without_a_broker(running: Deployment) -> None:
    done = consent(running, "partition", "p-1", RABBITMQ_URL="", CONSENT_PARTITIONS="8")
    assert done.stdout == "7 of 8; routing keys ask.7, grant.7, revoke.7, deny.7, withdraw.7\n"
