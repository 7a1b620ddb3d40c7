"""What is said is said on every terminal, in whatever encoding, and the exit code stays right."""

import json
from typing import Final

import pytest

from tests.support.deployment import Deployment

PLAIN: Final = [
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONUTF8": "0", "LC_ALL": "POSIX"},
]


@pytest.mark.parametrize("terminal", PLAIN)
def test_check_says_the_same_where_its_marks_can_not_be_shown(
    deployment: Deployment, terminal: dict[str, str]
) -> None:
    good = deployment.run("command_service", "check", **terminal)
    assert good.returncode == 0
    assert "\nok schema: up to date\n" in good.stdout
    bad = deployment.run(
        "command_service", "check", EVENT_STORE_URL="postgresql://127.0.0.1:1/日", **terminal
    )
    assert bad.returncode == 1
    assert "\nNO database: not reached: " in bad.stdout
    assert "Traceback" not in good.stderr + bad.stderr


@pytest.mark.parametrize("terminal", PLAIN)
def test_json_stays_json_and_help_stays_help(
    deployment: Deployment, terminal: dict[str, str]
) -> None:
    unreached = {"EVENT_STORE_URL": "postgresql://127.0.0.1:1/日", **terminal}
    told = deployment.run("command_service", "check", "--json", **unreached)
    assert told.returncode == 1
    assert not json.loads(told.stdout)["ok"]
    for words in (("command_service", "migrate"), ("projection_service",), ("shared.cli.consent",)):
        helped = deployment.run(*words, "--help", **terminal)
        assert (helped.returncode, helped.stderr) == (0, "")
