"""The users of a broker that runs are made, changed and bound anew, through its management API."""

import subprocess
from collections.abc import Iterator
from typing import Any, Final

import pytest
from yarl import URL

from shared.errors import NotConnected
from shared.rabbitmq.connection import connect
from tests.sandbox import Sandbox
from tests.support.deployment import Deployment

CLINIC: Final = "clinic-users-test"


@pytest.fixture
def clinic(sandbox: Sandbox) -> Iterator[str]:
    yield CLINIC
    sandbox.broker.api("DELETE", f"/users/{CLINIC}")


def define(
    sandbox: Sandbox, deployment: Deployment, roles: str, password: str, **more: str
) -> "subprocess.CompletedProcess[str]":
    given = {
        "RABBITMQ_MANAGEMENT_URL": sandbox.broker.management_url,
        "PASSWORD_CLINIC_USERS_TEST": password,
        **more,
    }
    return deployment.run("command_service", "definitions", f"{CLINIC}={roles}", **given)


async def logs_in(deployment: Deployment, password: str) -> bool:
    url = str(URL(deployment.rabbitmq_url).with_user(CLINIC).with_password(password))
    try:
        async with connect(url, name="test"):
            return True
    except NotConnected:
        return False


async def test_a_password_is_changed_without_starting_the_broker_anew(
    sandbox: Sandbox, deployment: Deployment, clinic: str
) -> None:
    assert clinic
    for password, old in (("first", "none"), ("second", "first"), ("second", "first")):
        done = define(sandbox, deployment, "asker,inquirer", password)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "defined 1 users\n"
        assert await logs_in(deployment, password)
        assert not await logs_in(deployment, old)


def test_who_becomes_a_sender_is_not_held_to_the_askers_keys_any_more(
    sandbox: Sandbox, deployment: Deployment, clinic: str
) -> None:
    def topics() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = sandbox.broker.api(
            "GET", f"/users/{clinic}/topic-permissions"
        )
        return found

    assert define(sandbox, deployment, "asker", "p").returncode == 0
    assert ["ask" in one["write"] for one in topics()] == [True]
    assert define(sandbox, deployment, "sender", "p").returncode == 0
    assert topics() == []


def test_of_several_hosts_one_will_do(
    sandbox: Sandbox, deployment: Deployment, clinic: str
) -> None:
    assert clinic
    url = sandbox.broker.management_url.replace("@", "@127.0.0.1:1,")
    done = define(sandbox, deployment, "asker", "p", RABBITMQ_MANAGEMENT_URL=url)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_api_that_refuses_or_is_away_is_one_clear_line(
    sandbox: Sandbox, deployment: Deployment
) -> None:
    wrong = sandbox.broker.management_url.replace(sandbox.broker.password, "wrong")
    for url, code, complaint in (
        (wrong, 2, "rabbitmqctl change_password consent"),
        ("http://consent:p@127.0.0.1:1", 3, "not reached: the management API"),
        ("", 2, "give --management URL of a broker that runs, or --output FILE"),
    ):
        done = define(sandbox, deployment, "asker", "p", RABBITMQ_MANAGEMENT_URL=url)
        assert done.returncode == code
        assert complaint in done.stderr
        assert len(done.stderr.splitlines()) == 1
