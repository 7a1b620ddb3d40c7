"""What a newcomer meets first: help with examples, completion, one clear line where it fails."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import PARTITIONS
from tests.programs.command_lines import BEGIN, END, LIST, Verb, reference, verbs
from tests.sandbox import Sandbox
from tests.support import warm
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually

CONSENT: Final = Path(sys.executable).with_name("consent")
VERBS: Final = {verb.words: verb for verb in verbs()}
PATIENT_HERE: Final = ("p-1", "doctor", "d-1")


@pytest.fixture(scope="module")
def bare(sandbox: Sandbox) -> Iterator[Deployment]:
    """Give the tests servers on which nothing is prepared."""
    with open_deployment(sandbox, "first_impressions", partitions=PARTITIONS) as made:
        yield made


def consent(deployment: Deployment, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return warm.run([CONSENT, *arguments], deployment.environment())


@pytest.mark.parametrize("words", VERBS)
def test_every_command_says_what_it_and_each_of_its_parameters_does(words: str) -> None:
    verb = VERBS[words]
    assert verb.summary.endswith((".", "?")), f"{words} needs a docstring"
    assert verb.example, f"{words} needs an Example in its help"
    silent = [one.name for one in verb.command.params if not one.help]
    assert not silent, f"{words} needs a help text for {silent}"


@pytest.mark.parametrize("words", VERBS)
def test_the_example_of_every_command_is_one(words: str) -> None:
    verb = VERBS[words]
    given = _arguments_of(verb)
    assert given[: len(verb.words.split())] == verb.words.split()
    verb.command.make_context(words, given[len(verb.words.split()) :])


def _arguments_of(verb: Verb) -> list[str]:
    """Read the example as a shell does, up to a pipe, without settings in front."""
    words = shlex.split((verb.example or "").split(" | ")[0].split(" && ")[0])
    return [word for word in words if not word.split("=")[0].isupper()]


def test_the_list_of_commands_in_readme_is_complete() -> None:
    text = LIST.read_text(encoding="utf-8")
    listed = text.partition(BEGIN)[2].partition(END)[0]
    lines, expected = listed.splitlines(), reference().splitlines()
    missing = [line for line in expected if line not in lines]
    assert not missing, f"run `make contract`; missing: {missing}"
    assert listed == reference(), "run `make contract`"


@pytest.mark.parametrize(
    ("typed", "completed"), [("consent gr", "grant"), ("consent grant p-1 n", "nurse")]
)
def test_the_shell_completes_commands_and_values(typed: str, completed: str) -> None:
    asked = {
        "_CONSENT_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = subprocess.run(
        [CONSENT], env=asked, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [completed]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("EVENT_STORE_URL", ("command_service", "migrate")),
        ("READ_MODEL_URL", ("projection_service", "migrate")),
        ("READ_MODEL_URL", ("projection_service", "parked", "list")),
        ("RABBITMQ_URL", ("command_service", "topology")),
    ],
)
def test_a_verb_asks_for_no_setting_that_it_does_not_need_and_says_what_is_not_reached(
    bare: Deployment, setting: str, words: tuple[str, ...]
) -> None:
    url = (
        "amqp://u:secret@127.0.0.1:1"
        if setting == "RABBITMQ_URL"
        else "postgresql://u:secret@127.0.0.1:1/x"
    )
    nothing = {"RABBITMQ_URL": "", "EVENT_STORE_URL": "", "READ_MODEL_URL": ""}
    done = bare.run(*words, **nothing | {setting: url})
    assert done.returncode == 3
    assert done.stderr.startswith("error: not reached: ")
    assert done.stderr.endswith(": check its URL, and whether the server runs\n")
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("words", "more", "line"),
    [
        (("command_service", "run"), {}, "no consent schema yet: run `migrate` first"),
        (("projection_service", "run"), {}, "no consent schema yet: run `migrate` first"),
        (("projection_service", "parked", "list"), {}, "the schema is missing or older than this"),
        (("command_service", "run"), {"HTTP_PORT": "x"}, "HTTP_PORT is wrong: input should be"),
        (
            ("command_service", "run"),
            {"RABBITMQ_URL": "http://x"},
            "RABBITMQ_URL is wrong: must be",
        ),
        (("command_service", "run"), {"EVENT_STORE_URL": "x"}, "EVENT_STORE_URL is wrong: must be"),
    ],
)
def test_what_an_operator_must_mend_is_one_line_with_the_remedy(
    bare: Deployment, words: tuple[str, ...], more: dict[str, str], line: str
) -> None:
    done = bare.run(*words, **more)
    assert done.returncode == 2
    *logged, said = done.stderr.splitlines()
    assert said.startswith("error: ")
    assert line in said
    assert all(json.loads(one)["event"] == "worker.started" for one in logged)


def test_a_busy_port_is_one_line_with_the_remedy(bare: Deployment, sandbox: Sandbox) -> None:
    port = str(sandbox.broker.management_port)
    done = bare.run("command_service", "run", HTTP_PORT=port)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"error: HTTP_PORT is {port}, which can't be used")
    assert ": choose a free port, or 0 for none" in said


@pytest.mark.parametrize("arguments", [("list", "p-1"), ("grant", *PATIENT_HERE)])
def test_exchanges_that_are_missing_are_one_line_with_the_remedy(
    bare: Deployment, arguments: tuple[str, ...]
) -> None:
    done = consent(bare, *arguments, "--within", "4")
    assert done.returncode == 3
    (said,) = done.stderr.splitlines()
    assert "no exchange 'consent." in said
    assert said.endswith(": run `python -m command_service topology`")


async def test_a_worker_whose_queue_is_missing_says_so_and_begins_once_it_is_there(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    sandbox.broker.api("DELETE", f"/queues/{deployment.rabbitmq_url.rsplit('/', 1)[1]}/consent.log")
    worker = deployment.start("command_service")

    async def said() -> bool:
        remedy = "the queue consent.log is missing: run `python -m command_service topology`"
        return remedy in worker.get("/health/ready")[1] and remedy in worker.log

    await eventually(said, within=60)
    assert deployment.run("command_service", "topology").returncode == 0
    worker.wait_ready(60)
