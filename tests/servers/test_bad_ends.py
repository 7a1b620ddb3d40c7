"""Ends that are none: each is refused with the field and the remedy, wherever it is noticed."""

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from pydantic import ValidationError

from shared.client.client import ConsentClient
from shared.messages.validation import details_of
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_cli import consent
from tests.support.amqp import Client, Json, body_of, open_client
from tests.support.deployment import Deployment, open_deployment
from tests.support.standing import assert_unharmed, standing_deployment

NOWHERE: Final = "amqp://guest:guest@127.0.0.1:1/"
"""What is refused here has not been sent: nobody listens there."""
TOO_LATE: Final = "must be before the year 9999: leave it out for a consent without an end"
NO_TIME: Final = "must be a time with its zone, like 2026-11-23T08:00:00Z"
LEAP: Final = "must not be in a leap second: use the second after it"
DIGITS: Final = "must have nine digits after the second at most; six of them count"
BAD_ENDS: Final[dict[str, tuple[object, str]]] = {
    "null": (None, "must not be null: leave it out for a consent without an end"),
    "without a zone": ("2027-01-01T00:00:00", NO_TIME),
    "a day": ("2027-01-01", NO_TIME),
    "a day that is not": ("2027-02-30T00:00:00Z", NO_TIME),
    "a number": (1_798_761_600, NO_TIME),
    "no text": ("", NO_TIME),
    "an offset of a day": ("2027-01-01T00:00:00+24:00", NO_TIME),
    "ten digits": ("2027-01-01T00:00:00.1234567891Z", DIGITS),
    "a leap second": ("2026-12-31T23:59:60Z", LEAP),
    "a leap second elsewhere": ("2027-01-01T01:59:60+02:00", LEAP),
    "the year 9999": ("9999-12-31T23:59:59Z", TOO_LATE),
    "the year 9999 in UTC": ("9998-12-31T23:59:59-01:00", TOO_LATE),
    "the year 10000": ("10000-01-01T00:00:00Z", TOO_LATE),
    "the year 12026": ("+12026-01-01T00:00:00Z", TOO_LATE),
}


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, "bad_ends", migrated) as made:
        yield made
        assert_unharmed(made)


@pytest.fixture
async def client(running: Deployment) -> AsyncIterator[Client]:
    async with open_client(running.rabbitmq_url, PARTITIONS) as connected:
        yield connected


async def log_of(client: Client, patient_id: str) -> list[Json]:
    number = int(client.key("AskConsent", patient_id).split(".")[1])
    page = await client.query("ReadEvents", partition=number, patient_id=patient_id)
    found: list[Json] = page["events"]
    return found


@pytest.mark.parametrize("type_", ["AskConsent", "GrantConsent"])
@pytest.mark.parametrize("name", BAD_ENDS)
async def test_an_end_that_is_none_is_refused_with_its_field_and_the_remedy(
    client: Client, type_: str, name: str
) -> None:
    end, remedy = BAD_ENDS[name]
    body = body_of(type_, "p-bad-end") | {"expires_at": end}

    reply = await client.reply(await client.send(type_, body))

    assert (reply["status"], reply["error"]) == ("rejected", "validation_error")
    assert reply["details"] == [{"field": "expires_at", "message": remedy}]
    (kept,) = await client.dead_letters()
    assert kept.body == json.dumps(body).encode()
    assert await log_of(client, "p-bad-end") == []


@pytest.mark.parametrize("type_", ["AskConsent", "GrantConsent"])
async def test_an_end_that_has_come_is_refused_by_the_rules_and_nothing_is_set_aside(
    client: Client, type_: str
) -> None:
    patient_id = f"p-late-{type_}"
    await client.command("AskConsent", patient_id, id_="d-9")
    (asked,) = await log_of(client, patient_id)
    for end in (asked["time"], "2020-02-29T23:59:59.999999+14:00", "1969-12-31T23:59:59Z"):
        reply = await client.command(type_, patient_id, expires_at=end)
        assert (reply["status"], reply["error"]) == ("rejected", "expiry_not_in_the_future")
        (detail,) = reply["details"]
        assert detail["field"] == "expires_at"
        assert detail["message"].startswith("must be in the future, not ")
    assert await client.dead_letters() == []
    assert await log_of(client, patient_id) == [asked]


async def test_an_end_is_read_to_the_microsecond_and_in_any_zone(client: Client) -> None:
    reply = await client.command(
        "GrantConsent", "p-exact", expires_at="2126-01-01t01:30:00.123456999+01:30"
    )
    assert reply["status"] == "accepted"
    (granted,) = await log_of(client, "p-exact")
    assert granted["data"]["expires_at"] == "2126-01-01T00:00:00.123456Z"


async def test_a_longer_grant_than_is_allowed_is_refused_and_told_how_long(
    sandbox: Sandbox, migrated: str
) -> None:
    with open_deployment(
        sandbox, "longest_grant", partitions=PARTITIONS, prepared_from=migrated
    ) as made:
        made.declare()
        made.start("command_service", CONSENT_LONGEST_GRANT="30d").wait_ready()
        async with open_client(made.rabbitmq_url, PARTITIONS) as client:
            for more in ({"expires_at": in_days(31)}, {}):
                for type_ in ("AskConsent", "GrantConsent"):
                    reply = await client.command(type_, "p-long", **more)
                    assert reply["error"] == "grant_too_long"
                    (detail,) = reply["details"]
                    assert detail["field"] == "expires_at"
                    assert "30 days" in detail["message"]
            reply = await client.command("GrantConsent", "p-long", expires_at=in_days(29))
            assert reply["status"] == "accepted"


@pytest.mark.parametrize(
    ("given", "why"), [("x", "'x' is no duration: write a number"), ("0d", "must be longer than")]
)
def test_a_limit_that_is_none_is_one_line_with_the_remedy(
    running: Deployment, given: str, why: str
) -> None:
    done = running.run("command_service", "run", CONSENT_LONGEST_GRANT=given)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: CONSENT_LONGEST_GRANT is wrong: {why}")


def in_days(number: int) -> str:
    return (datetime.now(UTC) + timedelta(days=number)).isoformat()


PYTHON_ENDS: Final[dict[str, tuple[Any, str]]] = {
    "without a zone": (datetime(2027, 1, 1), NO_TIME),  # noqa: DTZ001 - what is at fault
    "the year 9999": (datetime(9999, 1, 1, tzinfo=UTC), TOO_LATE),
    "a number": (1_798_761_600, NO_TIME),
    **{name: (text, remedy) for name, (text, remedy) in BAD_ENDS.items() if isinstance(text, str)},
}


@pytest.mark.parametrize("name", PYTHON_ENDS)
async def test_the_client_in_python_refuses_it_before_anything_is_sent(name: str) -> None:
    end, remedy = PYTHON_ENDS[name]
    client = ConsentClient(NOWHERE)
    for send in (client.ask, client.grant):
        with pytest.raises(ValidationError) as refused:
            await send("p-1", "doctor", "d-1", "exams", expires_at=end)
        (detail,) = details_of(refused.value)
        assert (detail.field, detail.message) == ("expires_at", remedy)


A_DAY: Final = "must be a day like 2027-01-01, or a time with its zone, like 2026-11-23T08:00:00Z"


@pytest.mark.parametrize("verb", ["ask", "grant"])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--until", "2027-01-01T00:00:00"), f"'--until': {A_DAY}"),
        (("--until", "2027-02-30"), f"'--until': {A_DAY}"),
        (("--until", "tomorrow"), f"'--until': {A_DAY}"),
        (("--until", ""), f"'--until': {A_DAY}"),
        (("--until", "2027-01-01T00:00:00.1234567891Z"), f"'--until': {DIGITS}"),
        (("--until", "2026-12-31T23:59:60Z"), f"'--until': {LEAP}"),
        (("--until", "9999-12-31"), f"'--until': {TOO_LATE}"),
        (("--until", "10000-01-01"), f"'--until': {TOO_LATE}"),
        (("--for", "90"), "'90' is no duration: write a number and one of s m h d w y, as 90d"),
        (("--for", "0d"), "'--for': must be longer than nothing, as 90d"),
        (("--for", "8000y"), "--for is too long: leave it out for a consent without an end"),
        (("--for", "999999999y"), "is no duration"),
        (("--for", "1d", "--until", "2027-01-01"), "give --until or --for, not both"),
    ],
)
def test_the_command_line_refuses_it_before_anything_is_sent(
    running: Deployment, verb: str, options: tuple[str, ...], complaint: str
) -> None:
    done = consent(running, verb, "p-1", "doctor", "d-1", *options, RABBITMQ_URL=NOWHERE)
    assert done.returncode == 2
    assert complaint in said(done)
    assert "Traceback" not in done.stderr


def said(done: "subprocess.CompletedProcess[str]") -> str:
    """Read what a terminal shows in a box as one line."""
    return " ".join(done.stderr.replace("│", " ").split())


def test_the_command_line_tells_what_the_rules_say_of_an_end_that_has_come(
    running: Deployment,
) -> None:
    done = consent(running, "grant", "p-past", "doctor", "d-1", "--until", "2020-01-01", TZ="UTC0")
    assert done.returncode == 1
    assert "rejected expiry_not_in_the_future: the end of the consent has come already" in (
        done.stdout
    )
    assert "expires_at: must be in the future, not 2020-01-01T00:00:00.000000Z" in done.stdout
