"""No id looks like another one, and nothing that others sent deceives whoever reads it."""

import json
import unicodedata
from typing import Final
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from command_service.domain.decisions import Batch, Decision
from command_service.domain.fingerprint import fingerprint
from command_service.domain.received import Received
from command_service.store.event_store import EventStore
from shared.cli.watch import json_line, readable_line
from shared.messages.cloud_event import CloudEvent
from shared.messages.commands import AskConsent, GrantConsent, RevokeConsent
from shared.messages.queries import HasConsent
from shared.messages.validation import details_of
from shared.postgres.database import open_pool
from shared.values import legible
from shared.values.legible import visible, visible_json
from shared.values.partition import partition_of
from shared.values.vocabulary import Id
from tests.conftest import PARTITIONS
from tests.servers.test_cli import consent
from tests.support.amqp import Client
from tests.support.deployment import Deployment

ID: Final[TypeAdapter[str]] = TypeAdapter(Id)

HIDDEN: Final = {
    "a zero-width space": ("d\u200b-1", "U+200B ZERO WIDTH SPACE"),
    "a zero-width joiner": ("d\u200d-1", "U+200D ZERO WIDTH JOINER"),
    "a soft hyphen": ("d\u00ad-1", "U+00AD SOFT HYPHEN"),
    "what turns the line around": ("\u202e1-d", "U+202E RIGHT-TO-LEFT OVERRIDE"),
    "an isolate": ("\u2066d-1", "U+2066 LEFT-TO-RIGHT ISOLATE"),
    "a byte order mark": ("\ufeffd-1", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
    "a tag": ("d-1\U000e0041", "U+E0041 TAG LATIN CAPITAL LETTER A"),
    "one for private use": ("d-1\ue000", "U+E000"),
    "one for private use beyond the basic plane": ("d-1\U00100000", "U+100000"),
    "one that is not assigned": ("d-1\u0378", "U+0378"),
    "one that is no character": ("d-1\uffff", "U+FFFF"),
    "a variation selector": ("d-1\ufe0f", "U+FE0F VARIATION SELECTOR-16"),
    "a further variation selector": ("d-1\U000e0100", "U+E0100 VARIATION SELECTOR-17"),
    "a grapheme joiner": ("d\u034f-1", "U+034F COMBINING GRAPHEME JOINER"),
    "a filler": ("d\u3164-1", "U+3164 HANGUL FILLER"),
    "a blank of braille": ("d\u2800-1", "U+2800 BRAILLE PATTERN BLANK"),
    "a notehead that is none": ("d\U0001d159-1", "U+1D159 MUSICAL SYMBOL NULL NOTEHEAD"),
    "a blank hieroglyph": ("d\U00013441-1", "U+13441"),
    "a filler beyond the basic plane": ("d\U00016fe4-1", "U+16FE4 KHITAN SMALL SCRIPT FILLER"),
    "a space that is no plain one": ("d\u00a01", "U+00A0 NO-BREAK SPACE"),
    "a separator of lines": ("d\u20281", "U+2028 LINE SEPARATOR"),
    "two characters for one": ("e\u0301", "U+0301 COMBINING ACUTE ACCENT"),
    "a sign for a letter": ("\u212b", "U+212B ANGSTROM SIGN"),
    "a control character": ("d\x07", "U+0007"),
}


@pytest.mark.parametrize(("text", "character"), HIDDEN.values(), ids=HIDDEN)
def test_no_new_id_has_a_hidden_character_and_the_error_names_it(text: str, character: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AskConsent(patient_id="p-1", by_entity="doctor", by_id=text, target="exams")
    (detail,) = details_of(caught.value)
    assert detail.field == "by_id"
    assert character in detail.message
    assert "leave it out" in detail.message or "normalize it to NFC" in detail.message
    assert text not in detail.message


@pytest.mark.parametrize("text", ["Zoë", "患者", "😀", "ё", "a b", "क्ष", "한글", "O'Neill", "-"])
def test_what_can_be_seen_is_an_id_in_any_script(text: str) -> None:
    assert ID.validate_python(text) == text


@given(st.text(min_size=1, max_size=4))
def test_an_id_is_composed_and_of_characters_with_ink(text: str) -> None:
    try:
        ID.validate_python(text)
    except ValidationError:
        return
    assert unicodedata.normalize("NFC", text) == text
    assert text.isprintable()
    assert visible(text) == text or "\\u{" in text


@given(st.text(max_size=6))
def test_two_texts_are_never_shown_alike_and_nothing_shown_is_hidden(text: str) -> None:
    told = visible(text)
    assert legible.hidden_character(told) is None
    assert unicodedata.is_normalized("NFC", told)
    assert _unescaped(told) == text


def _unescaped(told: str) -> str:
    first, *others = told.split("\\u{")
    parts = (other.split("}", 1) for other in others)
    return first + "".join(chr(int(code, 16)) + rest for code, rest in parts)


@given(st.recursive(st.text(max_size=6), lambda inner: st.lists(inner, max_size=3)))
def test_json_says_the_same_with_its_hidden_characters_escaped(value: object) -> None:
    told = visible_json(json.dumps(value, ensure_ascii=False))
    assert legible.hidden_character(told) is None
    assert json.loads(told) == value


# What an older version let into the log.

OLD: Final = "d\u200b-1\ufe0f"


def old_event(type_: str = "ConsentGranted", **changes: str) -> CloudEvent:
    data = {"patient_id": "p\u202e-1", "to_entity": "doctor", "to_id": OLD, "target": "exams"}
    body = {
        "id": "e-1", "type": type_, "subject": "p\u202e-1", "time": "2026-11-23T08:00:00.000000Z",
        "schemaversion": 1, "partition": 0, "position": 1, "streamversion": 1,
        "correlationid": "c-1", "causationid": "c-1", "data": data,
    }  # fmt: skip
    return CloudEvent.model_validate(body | changes)


def test_an_event_with_hidden_characters_is_read_as_ever() -> None:
    event = old_event().event()
    assert (event.patient_id, event.grantee.id) == ("p\u202e-1", OLD)


def test_what_is_recorded_can_be_asked_about_and_taken_back() -> None:
    asked = HasConsent(patient_id="p\u202e-1", entity_name="doctor", entity_id=OLD)
    taken = RevokeConsent(patient_id="p\u202e-1", from_entity="doctor", from_id=OLD, target="all")
    assert (asked.entity_id, taken.from_id) == (OLD, OLD)


def test_whoever_watches_sees_what_is_hidden() -> None:
    event = old_event()
    for line in (
        readable_line(event),
        json_line(event),
        readable_line(old_event(type="Consent\u202eNew", time="\u200bnow")),
    ):
        assert not any(one in line for one in "\u200b\u202e\ufe0f"), line
    assert "p\\u{202e}-1" in readable_line(event)
    assert CloudEvent.model_validate_json(json_line(event)) == event


# The same on the running product.


async def grant_as_an_older_version_did(event_store_url: str) -> None:
    """Append what is refused now, before any worker runs."""
    command = GrantConsent.model_construct(
        patient_id="p-1", to_entity="doctor", to_id=OLD, target="exams"
    )
    partition = partition_of("p-1", PARTITIONS)
    one = Received(uuid4(), command, fingerprint(command), partition, "c-1")
    pool = await open_pool(event_store_url, name="test", size=1)
    decision = Batch({}, {}).answer(one, uuid4)
    assert isinstance(decision, Decision)
    await EventStore(pool).append([decision], {partition: 0})
    pool.terminate()


async def test_a_command_with_a_hidden_character_is_refused_with_its_reason(
    deployment: Deployment, client: Client
) -> None:
    deployment.start_both()
    for type_ in ("AskConsent", "GrantConsent"):
        rejected = await client.command(type_, "p-1", id_="d\u200b-1")
        assert (rejected["status"], rejected["error"]) == ("rejected", "validation_error")
        (detail,) = rejected["details"]
        assert "U+200B" in detail["message"]
    rejected = await client.command("GrantConsent", "p-1", correlation_id="c\u202e")
    assert [one["field"] for one in rejected["details"]] == ["correlation_id"]


async def test_an_old_grant_to_such_an_id_is_found_shown_and_revoked(
    deployment: Deployment, client: Client
) -> None:
    await grant_as_an_older_version_did(deployment.event_store_url)
    deployment.start_both()
    whom = {"patient_id": "p-1", "entity_name": "doctor", "entity_id": OLD}
    held = await client.query("HasConsent", **whom, permission="exams", min_version=1)
    assert held["has_consent"] is True
    for words in (
        ("list", "p-1"), ("list", "p-1", "--json"), ("history", "p-1"),
        ("events", str(partition_of("p-1", PARTITIONS))), ("check", "p-1", "doctor", OLD, "exams"),
    ):  # fmt: skip
        told = consent(deployment, *words)
        assert told.returncode == 0, told
        assert not any(one in told.stdout + told.stderr for one in "\u200b\u202e\ufe0f"), words
    revoked = await client.command("RevokeConsent", "p-1", id_=OLD)
    assert revoked["status"] == "accepted"
