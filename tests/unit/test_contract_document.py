"""The published contract is what the models say, is valid, and breaks nobody."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from shared.contract.__main__ import CURRENT, RELEASED, SCHEMAS, contract_files
from shared.contract.breaking import breaks
from shared.contract.catalogue import all_messages
from shared.contract.schemas import schema_file
from shared.messages.queries import ANSWERS
from shared.rabbitmq.topology import queues
from shared.values.vocabulary import Id, RecordedId
from tests.programs.official_parser import complaints
from tests.support.javascript import NoNode

Json = dict[str, Any]
MESSAGES: Final = {message.name: message for message in all_messages()}
ID: Final[TypeAdapter[str]] = TypeAdapter(Id)
RECORDED_ID: Final[TypeAdapter[str]] = TypeAdapter(RecordedId)


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        schema_file(MESSAGES[name]), format_checker=Draft202012Validator.FORMAT_CHECKER
    )


LISTS: Final = validator("ListConsents")
ASKS: Final = validator("AskConsent")


def read(path: Path) -> Json:
    found: Json = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_the_committed_documents_are_what_the_models_say() -> None:
    files = dict(contract_files())
    assert {*SCHEMAS.iterdir(), CURRENT} == set(files), "run `make contract`"
    for path, content in files.items():
        assert path.read_text(encoding="utf-8") == content, f"{path.name}: run `make contract`"


def test_nothing_is_broken_of_what_was_released() -> None:
    assert breaks(read(RELEASED), read(CURRENT)) == []


@pytest.mark.parametrize("name", MESSAGES)
def test_every_schema_is_one_and_fits_its_example(name: str) -> None:
    Draft202012Validator.check_schema(schema_file(MESSAGES[name]))
    validator(name).validate(MESSAGES[name].example)


def test_every_query_that_is_routed_is_in_the_contract() -> None:
    keys = {
        key
        for queue in queues(1)
        for exchange, key in queue.bindings
        if exchange == "consent.queries"
    }
    assert keys == {query.type for query in ANSWERS}


def test_the_official_parser_finds_nothing_wrong_and_what_was_planted(tmp_path: Path) -> None:
    planted = tmp_path / "planted.json"
    document = read(CURRENT)
    document["operations"]["publishConsentAsked"]["action"] = "shout"
    planted.write_text(json.dumps(document))
    try:
        assert complaints([CURRENT, RELEASED]) == ""
        assert "operations.publishConsentAsked.action" in complaints([planted])
    except NoNode as why:
        pytest.skip(str(why))


def takes(ids: TypeAdapter[str], text: str) -> bool:
    try:
        ids.validate_python(text)
    except ValidationError:
        return False
    return True


def asked_for(patient_id: str) -> Json:
    return {"patient_id": patient_id, "by_entity": "doctor", "by_id": "d-1", "target": "all"}


@settings(max_examples=200)
@given(
    st.text(
        st.sampled_from(" \t\n\x85\xa0\u2028\u3000\ufeff\x7fx😀\u200b\u202e\ufe0f\ue000"),
        max_size=4,
    )
)
def test_the_schema_takes_exactly_the_ids_that_the_services_take(text: str) -> None:
    # Python's `$` also matches before a final line break, which other languages' doesn't.
    assert LISTS.is_valid({"patient_id": text}) == takes(RECORDED_ID, text) or text.endswith("\n")
    assert ASKS.is_valid(asked_for(text)) == takes(ID, text) or text.endswith("\n")


def test_the_schema_knows_every_hidden_character_of_the_basic_plane_that_is_assigned() -> None:
    pattern = re.compile(ASKS.schema["properties"]["patient_id"]["pattern"])
    for number in (*range(0xD800), *range(0xE000, 0x10000)):
        one = chr(number)
        as_pattern = pattern.search(f"x{one}x") is not None
        as_service = takes(ID, f"x{one}x")
        if as_pattern != as_service:
            assert not as_service, f"the schema alone refuses U+{number:04X}"
            composed = unicodedata.normalize("NFC", f"x{one}x")
            assert unicodedata.category(one) == "Cn" or composed != f"x{one}x", hex(number)


def test_an_id_is_no_longer_than_the_schema_says() -> None:
    assert LISTS.is_valid({"patient_id": "😀" * 128})
    assert not LISTS.is_valid({"patient_id": "x" * 129})
