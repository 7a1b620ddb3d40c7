"""The history asked for from outside: exact moments, pages, refusals, drawings, and the purge."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4
from xml.etree import ElementTree

import asyncpg
import pytest
from pogo_core.util.migrate import apply

from projection_service.purge_history import purge_history
from shared.client.client import ConsentClient
from shared.errors import QueryRefused, SettingsError
from shared.postgres.database import migrate
from shared.values.durations import parse_duration
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support import warm
from tests.support.amqp import Client, Json
from tests.support.deployment import Deployment
from tests.support.facts import fetch
from tests.support.standing import assert_unharmed, standing_deployment

ROOT: Final = Path(__file__).parents[2]
CONSENT: Final = Path(sys.executable).with_name("consent")
INSTANT: Final = timedelta(microseconds=1)


@pytest.fixture(scope="module")
def deployment(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, "history", migrated) as made:
        yield made


@pytest.fixture(autouse=True)
def workers_stand(deployment: Deployment) -> Iterator[None]:
    yield
    assert_unharmed(deployment)


def new_patient() -> str:
    return f"p-{uuid4()}"


async def play(client: Client, patient: str, *steps: tuple[str, str]) -> list[Json]:
    """Send commands one after the other; return the events that they caused."""
    for type_, target in steps:
        outcome = await client.command(type_, patient, target=target)
        assert outcome["status"] == "accepted", outcome
    page = await client.query("ReadEvents", partition=outcome["partition"], patient_id=patient)
    events: list[Json] = page["events"]
    return events


def to_doctor(patient: str) -> Json:
    return {"patient_id": patient, "entity_name": "doctor", "entity_id": "d-1"}


async def held(client: Client, patient: str, at: datetime | None, **more: Any) -> Json:  # noqa: ANN401
    body = {**to_doctor(patient), **more}
    if at is not None:
        body["at"] = at.isoformat()
    return await client.query("HasConsent", **body)


def moment_of(event: Json) -> datetime:
    return datetime.fromisoformat(event["time"])


def change(event: Json) -> Json:
    """Write how the history tells of the change that an event made."""
    return {
        "at": event["time"],
        "version": event["streamversion"],
        "command_id": event["causationid"],
    }


async def test_the_history_tells_who_what_when_and_by_which_command(client: Client) -> None:
    patient = new_patient()
    ask, remind, grant, revoke, again, grant_all, *_ = await play(
        client,
        patient,
        ("AskConsent", "exams"),
        ("AskConsent", "exams"),
        ("GrantConsent", "exams"),
        ("RevokeConsent", "exams"),
        ("AskConsent", "exams"),
        ("GrantConsent", "conditions"),
    )
    found = await client.query("ConsentHistory", patient_id=patient, min_version=6)
    who = {"entity_name": "doctor", "entity_id": "d-1"}
    exams = {**who, "record_type": "exams"}
    assert found == {
        "_type": "ConsentHistoryAnswer",
        "status": "ok",
        "patient_id": patient,
        "version": 6,
        "complete": True,
        "periods": [
            {**who, "record_type": "conditions", "granted": change(grant_all)},
            {**exams, "granted": change(grant), "ended": {"cause": "revoked", **change(revoke)}},
        ],
        "requests": [
            {**exams, "asked": change(ask), "answered": {"how": "granted", **change(grant)}},
            {**exams, "asked": change(remind), "answered": {"how": "granted", **change(grant)}},
            {**exams, "asked": change(again)},
        ],
    }


async def test_a_consent_is_in_force_from_the_grant_up_to_and_without_the_revoke(
    client: Client,
) -> None:
    patient = new_patient()
    granted, revoked, *_ = await play(
        client,
        patient,
        ("GrantConsent", "exams"),
        ("RevokeConsent", "exams"),
        ("GrantConsent", "all"),
    )
    in_force = {
        moment_of(granted) - INSTANT: False,
        moment_of(granted): True,
        moment_of(revoked) - INSTANT: True,
        moment_of(revoked): False,
        moment_of(revoked) + INSTANT: False,
        datetime.now(UTC) + timedelta(days=1): True,
    }
    for at, expected in in_force.items():
        answer = await held(client, patient, at, permission="exams", min_version=6)
        assert (answer["has_consent"], answer["version"]) == (expected, 6), at
    assert not (await held(client, patient, moment_of(granted)))["has_consent"]
    assert (await held(client, patient, datetime.now(UTC) + timedelta(days=1)))["has_consent"]


async def test_pages_follow_each_other_and_make_up_the_whole(
    client: Client, deployment: Deployment
) -> None:
    patient = new_patient()
    steps = [("AskConsent", "all"), ("GrantConsent", "all"), ("RevokeConsent", "all")]
    assert len(await play(client, patient, *steps)) == 12
    whole = await client.query("ConsentHistory", patient_id=patient, min_version=12)
    assert (len(whole["periods"]), len(whole["requests"]), "next" in whole) == (4, 4, False)

    periods, requests, after = [], [], None
    for number in range(3):
        body = {"patient_id": patient, "limit": 3, **({"after": after} if after else {})}
        page = await client.query("ConsentHistory", **body)
        periods += page["periods"]
        requests += page["requests"]
        after = page.get("next")
        assert (after is None) == (number == 2)
    assert (periods, requests) == (whole["periods"], whole["requests"])

    async with ConsentClient.connect(deployment.rabbitmq_url, partitions=PARTITIONS) as python:
        first = await python.history_page(patient, limit=8)
        assert first.next is None
        assert first == await python.history(patient)


async def test_of_a_patient_nobody_has_heard_of_there_is_nothing(client: Client) -> None:
    found = await client.query("ConsentHistory", patient_id=new_patient())
    assert (found["version"], found["periods"], found["requests"]) == (0, [], [])
    assert not (await held(client, new_patient(), datetime.now(UTC)))["has_consent"]


async def test_many_questions_at_once_are_each_answered(client: Client) -> None:
    patients = [new_patient() for _ in range(8)]
    for patient in patients:
        await play(client, patient, ("GrantConsent", "exams"))
    asked = [
        await client.send(
            type_, body, exchange="consent.queries", key=type_
        )
        for patient in patients * 6
        for type_, body in (
            ("ConsentHistory", {"patient_id": patient, "min_version": 1}),
            ("HasConsent", {"patient_id": patient, "entity_name": "doctor", "entity_id": "d-1",
                            "permission": "exams", "at": "2999-01-01T00:00:00+02:00",
                            "min_version": 1}),
            ("ListConsents", {"patient_id": patient, "min_version": 1}),
        )
    ]  # fmt: skip
    answers = [await client.reply(one, within=30) for one in asked]
    histories, checks, lists = answers[::3], answers[1::3], answers[2::3]
    assert [one["patient_id"] for one in histories] == patients * 6
    assert all(len(one["periods"]) == 1 for one in histories)
    assert all(one["has_consent"] for one in checks)
    assert [one["patient_id"] for one in lists] == patients * 6


PLACE: Final = {
    "entity_name": "doctor", "entity_id": "d", "record_type": "exams", "kind": "period",
    "version": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "body", "field"),
    [
        ("HasConsent", {"at": "2026-03-01T12:00:00"}, "at"),
        ("HasConsent", {"at": "2026-03-01"}, "at"),
        ("HasConsent", {"at": "last March"}, "at"),
        ("HasConsent", {"at": "1700000000"}, "at"),
        ("HasConsent", {"at": 1700000000}, "at"),
        ("HasConsent", {"at": "0001-01-01T00:00:00+14:00"}, "at"),
        ("HasConsent", {"at": "2026-02-30T12:00:00Z"}, "at"),
        ("ConsentHistory", {"limit": 0}, "limit"),
        ("ConsentHistory", {"limit": 501}, "limit"),
        ("ConsentHistory", {"min_version": -1}, "min_version"),
        ("ConsentHistory", {"after": "somewhere"}, "after"),
        ("ConsentHistory", {"after": {}}, "after.entity_name"),
        ("ConsentHistory", {"after": PLACE | {"kind": "thing"}}, "after.kind"),
        ("ConsentHistory", {"after": PLACE | {"version": 2**63}}, "after.version"),
        ("ConsentHistory", {"after": PLACE | {"entity_id": "a\x00"}}, "after.entity_id"),
        ("ConsentHistory", {"surprise": 1}, "surprise"),
    ],
)
async def test_a_bad_question_about_the_past_is_told_which_field_is_wrong(
    client: Client, type_: str, body: Json, field: str
) -> None:
    who = {"entity_name": "doctor", "entity_id": "d-1"} if type_ == "HasConsent" else {}
    answer = await client.query(type_, patient_id="p-1", **who, **body)
    assert (answer["status"], answer["error"]) == ("error", "validation_error")
    assert field in [detail["field"] for detail in answer["details"]]


async def test_a_version_that_does_not_come_is_told_for_the_history_too(client: Client) -> None:
    patient = new_patient()
    await play(client, patient, ("GrantConsent", "exams"))
    for answer in await asyncio.gather(
        client.query_once("ConsentHistory", patient_id=patient, min_version=9),
        client.query_once("HasConsent", **to_doctor(patient), min_version=9),
    ):
        assert (answer["error"], answer["version"]) == ("not_yet_projected", 1)


# On the command line.


def consent(
    deployment: Deployment, *arguments: str, **more: str
) -> "subprocess.CompletedProcess[str]":
    return warm.run([CONSENT, *arguments], deployment.environment(COLUMNS="100", **more))


async def test_the_command_line_draws_the_history_and_answers_for_a_moment(
    client: Client, deployment: Deployment, tmp_path: Path
) -> None:
    patient = new_patient()
    granted, revoked = await play(
        client, patient, ("GrantConsent", "exams"), ("RevokeConsent", "exams")
    )
    file = tmp_path / "history.svg"
    drawn = consent(deployment, "history", patient, "--min-version", "2", "--svg", str(file))
    assert drawn.returncode == 0, drawn.stderr
    assert f"Patient {patient}, version 2" in drawn.stdout
    assert re.search(r"^doctor d-1 +exams +[━┫╋]", drawn.stdout, re.MULTILINE)
    for told in ("exams granted to doctor d-1", "exams revoked from doctor d-1"):
        assert told in drawn.stdout
    assert granted["causationid"][:8] in drawn.stdout
    assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314

    plain = consent(deployment, "history", patient, PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stdout.isascii()) == (0, True)

    data = json.loads(consent(deployment, "history", patient, "--json").stdout)
    assert data["periods"][0]["ended"] == {"cause": "revoked", **change(revoked)}

    check = ("check", patient, "doctor", "d-1", "exams")
    then = consent(deployment, *check, "--at", granted["time"])
    assert (then.returncode, then.stdout) == (
        0,
        f"yes at {granted['time']}, as of version 2\n",
    )
    assert consent(deployment, *check).returncode == 1
    assert consent(deployment, *check, "--at", revoked["time"]).returncode == 1


def test_wrong_use_of_the_history_is_one_clear_line(deployment: Deployment) -> None:
    naive = consent(deployment, "check", "p-1", "doctor", "d-1", "--at", "2026-03-01T12:00:00")
    assert naive.returncode == 2
    assert "must be a time with its zone" in " ".join(naive.stderr.split())
    nowhere = consent(deployment, "history", "p-1", "--svg", "/nowhere/p-1.svg")
    assert nowhere.returncode == 2
    assert "error: --svg: /nowhere/p-1.svg can't be written" in nowhere.stderr


# Retention.


async def age(deployment: Deployment, patient: str, days: int) -> None:
    """Make everything in a patient's history happen so many days earlier."""
    connection = await asyncpg.connect(deployment.read_model_url)
    try:
        await connection.execute(
            """UPDATE consent_history SET began_at = began_at - $2::interval,
                      ended_at = ended_at - $2::interval WHERE patient_id = $1""",
            patient,
            timedelta(days=days),
        )
    finally:
        await connection.close()


def purge(deployment: Deployment, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return deployment.run("projection_service", "history", "purge", *arguments)


async def test_a_purge_removes_what_ended_long_ago_and_refuses_to_guess_about_it(
    client: Client, deployment: Deployment
) -> None:
    old, young = new_patient(), new_patient()
    for patient in (old, young):
        await play(
            client,
            patient,
            ("AskConsent", "exams"),
            ("GrantConsent", "exams"),
            ("RevokeConsent", "exams"),
            ("GrantConsent", "conditions"),
            ("AskConsent", "er_visits"),
        )
        await client.query("ListConsents", patient_id=patient, min_version=5)
    await age(deployment, old, 100)

    counted = json.loads(purge(deployment, "--older-than", "90d", "--dry-run", "--json").stdout)
    assert (counted["periods"], counted["requests"]) == (1, 1)
    before = await client.query("ConsentHistory", patient_id=old)
    assert (len(before["periods"]), len(before["requests"]), before["complete"]) == (2, 2, True)

    done = purge(deployment, "--older-than", "90d")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("removed 1 periods and 1 requests\nthe past is known since ")
    after = await client.query("ConsentHistory", patient_id=old)
    assert [one["record_type"] for one in after["periods"]] == ["conditions"]
    assert [one["record_type"] for one in after["requests"]] == ["er_visits"]
    assert after["complete"] is False
    known_since = datetime.fromisoformat(after["known_since"])
    kept = await client.query("ConsentHistory", patient_id=young)
    assert (len(kept["periods"]), len(kept["requests"])) == (2, 2)

    refused = await held(client, old, known_since - INSTANT)
    assert (refused["error"], [one["field"] for one in refused["details"]]) == (
        "validation_error",
        ["at"],
    )
    assert after["known_since"] in refused["details"][0]["message"]
    at_once = await held(client, old, known_since, permission="conditions")
    assert at_once["has_consent"] is True
    async with ConsentClient.connect(deployment.rabbitmq_url, partitions=PARTITIONS) as python:
        with pytest.raises(QueryRefused, match="the query is not valid: at"):
            await python.has_consent(old, "doctor", "d-1", at=known_since - timedelta(days=1))

    # A longer age later does not bring back what is gone.
    assert purge(deployment, "--older-than", "10y").returncode == 0
    again = await client.query("ConsentHistory", patient_id=old)
    assert again["known_since"] == after["known_since"]
    drawn = consent(deployment, "history", old)
    assert "was purged" in drawn.stdout
    await forget_horizon(deployment)


async def forget_horizon(deployment: Deployment) -> None:
    connection = await asyncpg.connect(deployment.read_model_url)
    await connection.execute("DELETE FROM history_horizon")
    await connection.close()


async def test_a_silly_age_purges_nothing(deployment: Deployment) -> None:
    done = purge(deployment, "--older-than", "23h")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no history younger than a day can be purged: --older-than 1d or more" in done.stderr
    connection = await asyncpg.connect(deployment.read_model_url)
    with pytest.raises(SettingsError, match="nothing is that old"):
        await purge_history(connection, timedelta(days=365 * 9999))
    assert await connection.fetchval("SELECT count(*) FROM history_horizon") == 0
    await connection.close()


@pytest.mark.parametrize(
    ("text", "days"),
    [("90d", 90), ("48h", 2), ("2w", 14), ("1y", 365), ("86400s", 1), (" 1440m", 1)],
)
def test_a_duration_is_a_number_and_its_unit(text: str, days: int) -> None:
    assert parse_duration(text) == timedelta(days=days)


@pytest.mark.parametrize(
    "text", ["", "soon", "90", "d", "-1d", "1.5d", "1M", "99999999y", "1 d", "²d"]
)
def test_what_is_no_duration_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and one of s m h d w y"):
        parse_duration(text)


async def test_before_a_rebuild_a_read_model_without_a_past_says_so(
    client: Client, deployment: Deployment
) -> None:
    patient = new_patient()
    await play(client, patient, ("GrantConsent", "exams"))
    connection = await asyncpg.connect(deployment.read_model_url)
    await connection.execute("INSERT INTO history_horizon VALUES ('infinity')")
    await connection.close()
    try:
        refused = await held(client, patient, datetime.now(UTC), min_version=1)
        assert "before a rebuild" in refused["details"][0]["message"]
        found = await client.query("ConsentHistory", patient_id=patient)
        assert (found["complete"], "known_since" in found) == (False, False)
        assert (await held(client, patient, None, permission="exams"))["has_consent"] is True
    finally:
        await forget_horizon(deployment)


async def test_a_migration_that_finds_events_projected_knows_nothing_of_their_past(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    for folder, name in (
        ("shared/postgres", "0001-partitions"),
        ("projection_service", "0002-read-model"),
        ("projection_service", "0003-parked-events"),
    ):
        source = ROOT / folder / "migrations" / f"{name}.sql"
        (tmp_path / source.name).write_text(source.read_text())
    url = sandbox.read_model_server.create_database("before_history")
    connection = await asyncpg.connect(url)
    try:
        await apply(connection, tmp_path, schema_name="public")
        await connection.execute("INSERT INTO partitions (partition) VALUES (0)")
        await connection.execute("INSERT INTO checkpoints VALUES (0, 1)")
    finally:
        await connection.close()
    assert "0004-history" in await migrate(url, "projection_service", 1)
    rows = await fetch(url, "SELECT isfinite(known_since) AS finite FROM history_horizon")
    assert [row["finite"] for row in rows] == [False]
    sandbox.read_model_server.drop_database("before_history")
