"""No password is on a command line or in a file that others can read."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from yarl import URL

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.compose import read_compose
from tests.support.deployment import Deployment, open_deployment

DEFINE: Final = ("command_service", "definitions", "clinic-a=asker", "--output")
PASSWORD: Final = {"PASSWORD_CLINIC_A": "x"}


@pytest.fixture(scope="module")
def prepared(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with open_deployment(sandbox, "secrets", partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        made.start("command_service").wait_ready()  # or the projection's `check` waits for one
        yield made


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.mark.usefixtures("usual_umask")
def test_the_definitions_are_their_owners_alone_from_the_first_byte_on(
    prepared: Deployment, tmp_path: Path
) -> None:
    file = tmp_path / "users.json"
    file.write_text("of before")
    assert mode(file) == 0o644
    with file.open() as held:
        done = prepared.run(*DEFINE, str(file), **PASSWORD)
        assert done.returncode == 0, done.stderr
        assert held.read() == "of before", "whoever had it open reads nothing of the new one"
    assert mode(file) == 0o600
    assert "clinic-a" in file.read_text()
    fresh = tmp_path / "fresh.json"
    assert prepared.run(*DEFINE, str(fresh), **PASSWORD).returncode == 0
    assert mode(fresh) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["fresh.json", "users.json"]


def test_the_definitions_follow_a_link_and_go_through_a_pipe(
    prepared: Deployment, tmp_path: Path
) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "users.json")
    assert prepared.run(*DEFINE, str(link), **PASSWORD).returncode == 0
    assert link.is_symlink()
    assert mode(link) == 0o600
    piped = prepared.run(*DEFINE, "/dev/stdout", **PASSWORD)
    assert '"name": "clinic-a"' in piped.stdout


def test_definitions_that_can_not_be_written_are_one_clear_line(
    prepared: Deployment, tmp_path: Path
) -> None:
    done = prepared.run(*DEFINE, str(tmp_path / "no-such-folder" / "users.json"), **PASSWORD)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --output: ")
    assert done.stderr.endswith("can't be written (No such file or directory): name another file\n")


@pytest.mark.parametrize("service", ["command_service", "projection_service"])
def test_the_managements_password_is_taken_from_a_variable_and_not_from_the_command_line(
    prepared: Deployment, sandbox: Sandbox, service: str
) -> None:
    url = URL(sandbox.broker.management_url)
    secret = str(url.password)
    refused = prepared.run(service, "check", "--management", str(url))
    assert refused.returncode == 2
    assert "RABBITMQ_MANAGEMENT_PASSWORD" in refused.stderr
    assert secret not in refused.stdout + refused.stderr

    bare = str(url.with_password(None))
    taken = prepared.run(
        service, "check", "--management", bare, RABBITMQ_MANAGEMENT_PASSWORD=secret
    )
    assert taken.returncode == 0, taken.stdout
    assert ", all as declared" in taken.stdout
    whole = prepared.run(service, "check", RABBITMQ_MANAGEMENT_URL=str(url))
    assert whole.returncode == 0, whole.stdout
    assert secret not in taken.stdout + whole.stdout


def test_no_container_has_a_password_on_its_command_line() -> None:
    for name, one in read_compose()["services"].items():
        words = [*one.get("entrypoint", ()), *one.get("command", ())]
        assert not any("demo-" in word for word in words), name


def test_the_databases_roles_are_made_without_a_password_on_a_command_line(tmp_path: Path) -> None:
    """The script runs, with a psql that says how it was called."""
    psql = tmp_path / "psql"
    psql.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\ncat > /dev/null\n')
    psql.chmod(0o755)
    given = {"POSTGRES_USER": "u", "POSTGRES_DB": "d"}
    given |= {"OWNER_PASSWORD": "planted-1", "WORKER_PASSWORD": "planted-2"}
    subprocess.run(
        ["sh", "shared/containers/create_roles.sh"],
        env={**given, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    called = (tmp_path / "called").read_text()
    assert "--no-psqlrc" in called
    assert "planted" not in called
