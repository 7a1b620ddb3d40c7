"""`consent check` for many lines, and `consent patients`, against real workers."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.client.client import ConsentClient
from shared.messages.queries import Actor, ConsentChecked, Question
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_cli import CONSENT, consent
from tests.support import warm
from tests.support.deployment import Deployment, open_deployment

LINES = """
# who may see what
p-1 doctor d-1 exams
p-1 doctor d-2 exams
'p 2' doctor d-1

{"patient_id": "p-1", "actors": [{"entity_name": "doctor", "entity_id": "d-2"},
"""
BOTH = {
    "patient_id": "p-1",
    "actors": [
        {"entity_name": "doctor", "entity_id": "d-2"},
        {"entity_name": "doctor", "entity_id": "d-1"},
    ],
    "permission": "exams",
}


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with open_deployment(sandbox, "lines", partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        made.start_both()
        for patient, *more in (("p-1", "exams"), ("p 2", "all", "--for", "90d"), ("p-3", "exams")):
            done = consent(made, "grant", patient, "doctor", "d-1", *more)
            assert done.returncode == 0, done
            done = consent(made, "list", patient, "--min-version", "1")
            assert done.returncode == 0, done
        yield made


def check(running: Deployment, text: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Check what is written to the standard input."""
    words = [CONSENT, "check", "-", *arguments]
    return warm.run(words, running.environment(COLUMNS="160"), given=text)


def test_lines_are_answered_as_a_table_in_their_order(running: Deployment) -> None:
    text = LINES.rsplit("\n{", 1)[0] + "\n" + json.dumps(BOTH)
    done = check(running, text)
    rows = [row for row in done.stdout.splitlines() if "p-1" in row or "p 2" in row]
    assert ["yes" in row for row in rows] == [True, False, True, True], done.stdout
    assert "until 20" in rows[2]
    assert done.stdout.splitlines()[-1] == "3 yes, 1 no"
    assert done.returncode == 1


def test_all_that_may_be_seen_is_a_success(running: Deployment) -> None:
    assert check(running, "p-1 doctor d-1 exams\np-3 doctor d-1 exams\n").returncode == 0
    assert check(running, "").returncode == 0


def test_json_has_an_answer_on_each_line_though_a_line_is_bad(running: Deployment) -> None:
    done = check(running, "p-1 doctor d-1 exams\np-1 surgeon d-1\np-1\n'p-1\n{}\n", "--json")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["status"] for one in answers] == ["ok", *["error"] * 4]
    assert answers[0]["basis"][0]["entity_id"] == "d-1"
    assert [one["message"] for one in answers[1:]] == [
        f"line {n} is not valid" for n in (2, 3, 4, 5)
    ]
    assert answers[2]["details"][0]["message"].startswith("must be PATIENT_ID ENTITY ID")
    assert done.returncode == 2


def test_very_many_lines_come_from_a_file_and_are_all_answered(
    running: Deployment, tmp_path: Path
) -> None:
    file = tmp_path / "ward.txt"
    file.write_text("".join(f"p-{number} doctor d-1 exams\n" for number in range(1_203)))
    done = consent(running, "check", str(file), "--json")
    answers = [json.loads(line)["has_consent"] for line in done.stdout.splitlines()]
    assert (len(answers), [n for n, yes in enumerate(answers) if yes]) == (1_203, [1, 3])


def test_a_moment_and_a_version_hold_for_every_line(running: Deployment) -> None:
    done = check(running, "p-1 doctor d-1 exams\n", "--at", "2020-01-01T00:00:00Z")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "0 yes, 1 no")
    done = check(running, "p-1 doctor d-1 exams\n", "--min-version", "99")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "0 yes, 1 unanswered")


def test_a_file_that_is_not_there_is_told_in_one_line(running: Deployment) -> None:
    done = consent(running, "check", "p-1")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "name a file, - for the standard input, or PATIENT_ID ENTITY ID" in done.stderr


async def test_answers_that_are_too_large_together_come_in_parts(running: Deployment) -> None:
    long = "\N{GRINNING FACE}" * 128
    async with ConsentClient.connect(running.rabbitmq_url, partitions=PARTITIONS) as client:
        await client.grant(long, "doctor", long, "all")
        actor = Actor(entity_name="doctor", entity_id=long)
        asked = Question(patient_id=long, actors=[actor], min_version=4)
        answers = await client.check_consents([asked] * 600)
    assert len(answers) == 600
    assert all(isinstance(one, ConsentChecked) and one.has_consent for one in answers)


def test_patients_are_listed_with_what_may_be_seen_of_them(running: Deployment) -> None:
    shown = consent(running, "patients", "doctor", "d-1", COLUMNS="160").stdout
    assert [word in shown for word in ("p-1", "p 2", "p-3", "er_visits")] == [True] * 4
    lines = consent(running, "patients", "doctor", "d-1", "all", "--json").stdout.splitlines()
    (only,) = map(json.loads, lines)
    assert only["patient_id"] == "p 2"
    assert only["until"].keys() == {"conditions", "consultations", "er_visits", "exams"}
    assert consent(running, "patients", "doctor", "d-none", "--json").stdout == ""
