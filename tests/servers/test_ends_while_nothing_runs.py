"""A consent ends at its moment, though no command worker runs and nobody records that it ended."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest

from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

PATIENT: Final = "p-1"
WHO: Final = {"entity_name": "doctor", "entity_id": "d-1"}
TICK: Final = timedelta(microseconds=1)
SOON: Final = timedelta(seconds=8)


def written(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


async def granted(client: Client, target: str, end: datetime | None, id_: str = "d-1") -> Any:  # noqa: ANN401
    expires_at = None if end is None else written(end)
    reply = await client.command(
        "GrantConsent", PATIENT, target=target, id_=id_, expires_at=expires_at
    )
    assert reply["status"] == "accepted", reply
    return reply


async def has_consent(client: Client, permission: str = "exams", **more: Any) -> Any:  # noqa: ANN401
    found = await client.query(
        "HasConsent", patient_id=PATIENT, **WHO, permission=permission, **more
    )
    return (found["has_consent"], found.get("valid_until"))


async def until_it_is_over(client: Client, deployment: Deployment, end: datetime) -> None:
    """Ask until the answer is no; each answer is right by the clock of the read model."""
    clock = await asyncpg.connect(deployment.read_model_url)
    try:

        async def over() -> bool:
            before = await clock.fetchval("SELECT clock_timestamp()")
            held, until = await has_consent(client)
            after = await clock.fetchval("SELECT clock_timestamp()")
            assert before < end if held else end <= after, (before, held, after)
            assert until == (written(end) if held else None)
            return not held

        await eventually(over)
    finally:
        await clock.close()


@pytest.fixture
async def end(deployment: Deployment, client: Client) -> datetime:
    """Grant until soon, ask for longer, and stop the command workers before the end comes."""
    command, _ = deployment.start_both()
    end = datetime.now(UTC) + SOON
    await granted(client, "exams", end)
    await granted(client, "conditions", end + timedelta(days=1))
    await granted(client, "exams", end, id_="d-2")
    asked = await client.command(
        "AskConsent", PATIENT, target="exams", expires_at=written(end + timedelta(days=9))
    )
    await client.query("ListConsents", patient_id=PATIENT, min_version=asked["version"])
    command.kill()
    return end


async def test_it_ends_to_the_microsecond_and_is_told_before(
    deployment: Deployment, client: Client, end: datetime
) -> None:
    later = written(end + timedelta(days=1))
    assert await has_consent(client, at=written(end - TICK)) == (True, written(end))
    assert await has_consent(client, at=written(end)) == (False, None)
    assert await has_consent(client, "conditions", at=written(end)) == (True, later)
    await until_it_is_over(client, deployment, end)

    assert await has_consent(client, "all") == (False, None)
    assert await has_consent(client, "conditions") == (True, later)
    assert await has_consent(client, at=written(end - TICK)) == (True, written(end))
    assert await has_consent(client, at=written(end)) == (False, None)
    found = await client.query("ListConsents", patient_id=PATIENT)
    assert found["consents"] == [
        {
            **WHO,
            "permissions": ["conditions"],
            "requested": ["exams"],
            "until": {"conditions": later},
            "requested_until": {"exams": written(end + timedelta(days=9))},
        }
    ], "and nothing of doctor d-2"
    history = await client.query("ConsentHistory", patient_id=PATIENT)
    told = {
        (one["entity_id"], one["record_type"]): (one["until"], one.get("ended"))
        for one in history["periods"]
    }
    ended = {"cause": "expired", "at": written(end)}
    assert told == {
        ("d-1", "exams"): (written(end), ended),
        ("d-2", "exams"): (written(end), ended),
        ("d-1", "conditions"): (later, None),
    }
    (ask,) = history["requests"]
    assert ask["until"] == written(end + timedelta(days=9))


async def test_a_yes_to_all_is_valid_until_the_first_of_its_ends(
    deployment: Deployment, client: Client
) -> None:
    deployment.start_both()
    first, second = (datetime.now(UTC) + timedelta(days=days) for days in (1, 2))
    await granted(client, "er_visits", second)
    await granted(client, "exams", first)
    last = await granted(client, "all", None)
    version = last["version"]
    assert await has_consent(client, "all", min_version=version) == (True, None), "extended"
    for target in ("exams", "conditions"):
        revoked = await client.command("RevokeConsent", PATIENT, target=target)
        assert revoked["status"] == "accepted"
    await granted(client, "conditions", second)
    version = (await granted(client, "exams", first))["version"]
    assert await has_consent(client, "all", min_version=version) == (True, written(first))
    assert await has_consent(client, "conditions") == (True, written(second))
    assert await has_consent(client, "er_visits") == (True, None)
    assert await has_consent(client, "all", at=written(first)) == (False, None)


async def test_an_extension_is_two_periods_without_a_gap(
    deployment: Deployment, client: Client
) -> None:
    deployment.start_both()
    first, second = (datetime.now(UTC) + timedelta(days=days) for days in (1, 2))
    await granted(client, "exams", first)
    reply = await granted(client, "exams", second)
    found = await client.query("ConsentHistory", patient_id=PATIENT, min_version=reply["version"])
    before, after = found["periods"]
    assert before["ended"] == {
        "cause": "extended", **{name: after["granted"][name] for name in ("at", "version")},
        "command_id": reply["command_id"],
    }  # fmt: skip
    assert (before["until"], after["until"]) == (written(first), written(second))
    assert "ended" not in after
    at = before["ended"]["at"]
    assert await has_consent(client, at=at) == (True, written(second))
    just_before = datetime.fromisoformat(at) - TICK
    assert await has_consent(client, at=written(just_before)) == (True, written(first))
