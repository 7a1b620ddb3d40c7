"""A command that comes again is known again, also by the versions that come after this one."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from command_service.domain.decisions import Batch, Receipt
from command_service.domain.fingerprint import fingerprint, is_of
from command_service.domain.received import Received
from shared.messages.commands import COMMANDS, ConsentCommand, GrantConsent
from shared.messages.replies import CommandAccepted, CommandRejected
from shared.values.partition import partition_of

GOLDEN: Final = json.loads((Path(__file__).parents[1] / "golden" / "fingerprints.json").read_text())


def command_of(golden: dict[str, Any]) -> ConsentCommand:
    return COMMANDS[golden["type"]].model_validate_json(json.dumps(golden["body"]))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda one: one["type"])
def test_a_golden_fingerprint_is_the_same_for_ever(golden: dict[str, Any]) -> None:
    assert fingerprint(command_of(golden)).hex() == golden["fingerprint"]


@pytest.mark.parametrize(
    "golden", [one for one in GOLDEN if "unversioned" in one], ids=lambda one: one["type"]
)
def test_a_receipt_from_before_fingerprints_had_versions_is_known(golden: dict[str, Any]) -> None:
    command = command_of(golden)
    assert is_of(bytes.fromhex(golden["unversioned"]), command)
    assert not is_of(blake2b(b"another", digest_size=16).digest(), command)


def test_every_command_has_a_golden_fingerprint() -> None:
    assert {one["type"] for one in GOLDEN} == set(COMMANDS), "add a row to fingerprints.json"


def test_no_two_commands_have_one_fingerprint() -> None:
    body = {"patient_id": "p", "to_entity": "doctor", "to_id": "d", "target": "exams"}
    changes: list[dict[str, str]] = [
        {}, {"patient_id": "q"}, {"to_entity": "nurse"}, {"to_id": "e"}, {"target": "all"},
        {"patient_id": "p entity=doctor", "to_id": "d target=exams"},
        {"expires_at": "2027-01-01T00:00:00Z"}, {"expires_at": "2027-01-01T00:00:00.000001Z"},
    ]  # fmt: skip
    found = {fingerprint(GrantConsent.model_validate(body | change)) for change in changes}
    assert len(found) == len(changes)


def received(command: ConsentCommand, command_id: UUID) -> Received:
    partition = partition_of(command.patient_id, 8)
    return Received(command_id, command, fingerprint(command), partition, "c")


@pytest.mark.parametrize("kept", ["fingerprint", "unversioned"])
def test_a_repeat_gets_the_outcome_and_another_content_a_conflict(kept: str) -> None:
    golden, command_id = GOLDEN[1], uuid4()
    command = command_of(golden)
    outcome = CommandAccepted(
        command_id=str(command_id), patient_id="p", partition=0, version=1, events=[]
    )
    receipt = Receipt(bytes.fromhex(golden[kept]), outcome)
    batch = Batch({command_id: receipt}, {})

    assert batch.answer(received(command, command_id), uuid4) is receipt
    other = command.model_copy(update={"target": "all"})
    refused = batch.answer(received(other, command_id), uuid4)
    assert isinstance(refused, CommandRejected)
    assert refused.error == "command_id_conflict"
