"""Whatever may hold a password can be in a file instead, which no list of processes shows."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.settings import secret
from tests.support.deployment import SERVICES, Deployment


def kept(folder: Path, name: str, text: str) -> dict[str, str]:
    """Put a value into a file, and name that instead."""
    file = folder / name.lower()
    file.write_text(f"{text}\n")
    return {name: "", f"{name}_FILE": str(file)}


def urls_in_files(deployment: Deployment, folder: Path) -> dict[str, str]:
    return {
        **kept(folder, "RABBITMQ_URL", deployment.rabbitmq_url),
        **kept(folder, "EVENT_STORE_URL", deployment.event_store_url),
        **kept(folder, "READ_MODEL_URL", deployment.read_model_url),
    }


def test_everything_runs_with_nothing_but_files(deployment: Deployment, tmp_path: Path) -> None:
    files = urls_in_files(deployment, tmp_path)
    for service in SERVICES:
        done = deployment.run(service, "migrate", **files)
        assert done.returncode == 0, done.stderr
    assert deployment.run("command_service", "topology", **files).returncode == 0
    for worker in [deployment.start(service, **files) for service in SERVICES]:
        worker.wait_ready()
    main = "from shared.cli.consent import main; main()"
    for verb, code in (("grant", 0), ("grant", 1)):
        done = subprocess.run(
            [sys.executable, "-c", main, verb, "p-1", "doctor", "d-1", "exams"],
            env=deployment.environment(**files),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"RABBITMQ_URL": "amqp://x/", "RABBITMQ_URL_FILE": "/x"}, "are both set"),
        ({"RABBITMQ_URL_FILE": "/not/there"}, "/not/there can't be read (No such file"),
        ({"RABBITMQ_URL_FILE": "/"}, "/ can't be read (Is a directory)"),
        ({"RABBITMQ_URL_FILE": "/dev/null"}, "/dev/null is empty"),
    ],
)
def test_a_file_that_can_not_serve_is_one_line(
    given: dict[str, str], complaint: str, deployment: Deployment
) -> None:
    done = deployment.run("command_service", "topology", **{"RABBITMQ_URL": "", **given})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: RABBITMQ_URL")
    assert complaint in line


def test_a_file_that_holds_no_url_is_not_quoted(deployment: Deployment, tmp_path: Path) -> None:
    files = kept(tmp_path, "EVENT_STORE_URL", "a-secret-that-is-no-url")
    done = deployment.run("command_service", "migrate", **files)
    assert done.returncode == 2
    assert "EVENT_STORE_URL is wrong" in done.stderr
    assert "a-secret" not in done.stderr


def test_the_management_apis_password_and_url_are_read_from_files(
    deployment: Deployment, tmp_path: Path
) -> None:
    for name, text, complaint in (
        ("RABBITMQ_MANAGEMENT_URL", "http://user:secret@127.0.0.1:1", "is not reached"),
        ("RABBITMQ_MANAGEMENT_PASSWORD", "secret", "is not reached"),
    ):
        option = [] if name.endswith("URL") else ["--management", "http://user@127.0.0.1:1"]
        done = deployment.run("command_service", "check", *option, **kept(tmp_path, name, text))
        assert complaint in done.stdout, done.stdout
        assert "secret" not in done.stdout
    done = deployment.run("command_service", "check", RABBITMQ_MANAGEMENT_URL_FILE="/not/there")
    assert done.returncode == 2
    assert "can't be read" in done.stderr


def test_only_the_line_end_is_taken_off_what_a_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b" white space counts \r\n")
    assert secret("P", {"P_FILE": str(file)}) == " white space counts "
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="no text in UTF-8"):
        secret("P", {"P_FILE": str(file)})
