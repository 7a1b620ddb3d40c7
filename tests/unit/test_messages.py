"""What the messages look like, and what is said of those that are not valid."""

import json
from datetime import UTC, datetime
from typing import get_args
from uuid import UUID

import pytest
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from command_service.domain.fingerprint import fingerprint
from command_service.store.recorded_event import FreshEvent, RecordedEvent
from shared.cli.watch import STYLES
from shared.messages import names
from shared.messages.cloud_event import CloudEvent
from shared.messages.commands import AskConsent, ConsentCommand, GrantConsent, RevokeConsent
from shared.messages.events import (
    EVENTS,
    ConsentAsked,
    ConsentDenied,
    ConsentEvent,
    ConsentExpired,
    ConsentGranted,
    ConsentRevoked,
    Fact,
    RequestWithdrawn,
    UnknownEventError,
)
from shared.messages.queries import ConsentHistory, ListConsents
from shared.messages.validation import MOST_DETAILS, MOST_FIELDS, details_of, read_json
from shared.values.partition import partition_of
from shared.values.vocabulary import Id

ID: TypeAdapter[str] = TypeAdapter(Id)

RECORDED = RecordedEvent(
    partition=3,
    position=42,
    stream_id="p-1",
    stream_version=5,
    event_id=UUID("11111111-2222-4333-8444-555555555555"),
    type="ConsentGranted",
    schema_version=1,
    data='{"patient_id":"p-1","to_entity":"doctor","to_id":"d-1","target":"exams"}',
    recorded_at=datetime(2026, 11, 23, 8, 0, 0, 123456, tzinfo=UTC),
    correlation_id="c-1",
    causation_id=UUID("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"),
    issued_by=None,
    traceparent=None,
    tracestate=None,
)


LINES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=128)
IDS = LINES.map(str.strip).filter(bool)


@given(
    stream_id=IDS,
    correlation_id=LINES,
    others=st.tuples(*[st.none() | LINES] * 3),
    generation=st.none() | st.integers(1, 2**63 - 1),
    data=st.dictionaries(LINES, LINES | st.integers()),
)
def test_a_page_of_the_log_has_the_same_event_as_its_message(
    stream_id: str,
    correlation_id: str,
    others: tuple[str | None, str | None, str | None],
    generation: int | None,
    data: dict[str, object],
) -> None:
    issued_by, traceparent, tracestate = others
    event = RECORDED._replace(
        stream_id=stream_id,
        correlation_id=correlation_id,
        issued_by=issued_by,
        traceparent=traceparent,
        tracestate=tracestate,
        generation=generation,
        data=json.dumps(data, ensure_ascii=False),
    )
    found = CloudEvent.model_validate_json(event.to_json())
    assert json.loads(event.message().body) == json.loads(found.to_json())
    assert (found.subject, found.correlationid, found.generation) == (
        stream_id,
        correlation_id,
        generation,
    )
    assert (found.issuedby, found.traceparent, found.tracestate) == others
    assert found.data == data


def test_a_recorded_event_travels_as_the_cloud_event_that_the_contract_shows() -> None:
    message = RECORDED.message()
    assert json.loads(message.body) == {
        "specversion": "1.0",
        "id": "11111111-2222-4333-8444-555555555555",
        "source": "consent/command-service",
        "type": "ConsentGranted",
        "subject": "p-1",
        "time": "2026-11-23T08:00:00.123456Z",
        "datacontenttype": "application/json",
        "schemaversion": 1,
        "partition": 3,
        "position": 42,
        "streamversion": 5,
        "correlationid": "c-1",
        "causationid": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee",
        "data": {
            "patient_id": "p-1",
            "to_entity": "doctor",
            "to_id": "d-1",
            "target": "exams",
        },
    }
    assert message.exchange == "consent.events"
    assert message.routing_key == "granted.doctor.exams.3"
    assert message.properties.content_type == "application/cloudevents+json"
    assert message.properties.message_id == "11111111-2222-4333-8444-555555555555"
    assert message.properties.message_type == "ConsentGranted"
    assert message.properties.delivery_mode == 2


END = datetime(2026, 12, 31, 23, 0, 0, 5, tzinfo=UTC)
EVERY_EVENT = [
    ConsentAsked(patient_id="患者", by_entity="nurse", by_id="n'1\\", target="er_visits"),
    ConsentGranted(patient_id="p-1", to_entity="doctor", to_id="d-1", target="exams"),
    ConsentRevoked(patient_id="p-2", from_entity="patient", from_id="é", target="exams"),
    ConsentExpired(
        patient_id="p-1", to_entity="doctor", to_id="d-1", target="exams", expires_at=END
    ),
    ConsentDenied(patient_id="p-1", to_entity="doctor", to_id="d-1", target="exams"),
    RequestWithdrawn(patient_id="p-1", by_entity="doctor", by_id="d-1", target="exams"),
    ConsentAsked(
        patient_id="p-1", by_entity="nurse", by_id="n-1", target="er_visits", expires_at=END
    ),
    ConsentGranted(
        patient_id="p-1", to_entity="doctor", to_id="d-1", target="exams", expires_at=END
    ),
]


def test_every_event_is_compared() -> None:
    assert {type(event) for event in EVERY_EVENT} == set(EVENTS.values())


@pytest.mark.parametrize(
    "event", EVERY_EVENT, ids=lambda event: f"{event.fact}-{event.schema_version}"
)
def test_a_fresh_event_is_published_as_it_is_when_it_is_read_back_from_the_log(
    event: ConsentEvent,
) -> None:
    read_back = RECORDED._replace(
        stream_id=event.patient_id,
        type=type(event).__name__,
        schema_version=event.schema_version,
        data=event.to_json(),
        issued_by="clinic",
        traceparent="00-1-2-01",
        tracestate="a=b",
    )
    fresh = FreshEvent(*read_back)
    fresh.event = event
    assert fresh == read_back
    assert hash(fresh) == hash(read_back)
    assert CloudEvent.model_validate_json(fresh.to_json()) == CloudEvent.model_validate_json(
        read_back.to_json()
    )
    one, other = fresh.message(), read_back.message()
    assert (one.exchange, one.routing_key, one.body) == (
        other.exchange,
        other.routing_key,
        other.body,
    )
    assert one.properties.marshal() == other.properties.marshal()


def test_the_official_sdk_of_cloud_events_reads_our_messages() -> None:
    message = RECORDED.message()
    event = from_rabbitmq(
        RabbitMQMessage({}, message.properties.content_type, message.body), JSONFormat()
    )
    assert event.get_id() == "11111111-2222-4333-8444-555555555555"
    assert event.get_time() == RECORDED.recorded_at
    assert event.get_subject() == "p-1"
    assert event.get_extension("position") == 42
    assert event.get_data() == json.loads(RECORDED.data)


def test_a_moment_without_a_fraction_still_shows_six_digits() -> None:
    moment = datetime(2026, 11, 23, 8, 0, 0, tzinfo=UTC)
    at_full_second = RecordedEvent(
        **{name: getattr(RECORDED, name) for name in RECORDED._fields} | {"recorded_at": moment}
    )
    assert (
        CloudEvent.model_validate_json(at_full_second.to_json()).time
        == "2026-11-23T08:00:00.000000Z"
    )


def test_a_reader_of_events_ignores_what_it_does_not_know() -> None:
    body = json.loads(RECORDED.message().body)
    body["later"] = {"data": 1}
    body["data"]["later"] = True
    event = CloudEvent.model_validate(body).event()
    assert event.target == "exams"


@pytest.mark.parametrize("change", [{"type": "ConsentPaused"}, {"schemaversion": 3}])
def test_an_event_from_a_newer_writer_is_known_to_be_unknown(change: dict[str, object]) -> None:
    body = json.loads(RECORDED.message().body) | change
    with pytest.raises(UnknownEventError):
        CloudEvent.model_validate(body).event()


def crc_bit_by_bit(data: bytes) -> int:
    """Compute the CRC-32 of zlib and PNG from its definition: the reversed polynomial, no table."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ (0xEDB88320 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50), st.integers(1, 64))
def test_the_partition_is_the_crc_of_zlib_over_utf8(patient_id: str, partitions: int) -> None:
    assert partition_of(patient_id, partitions) == crc_bit_by_bit(patient_id.encode()) % partitions


def test_known_partitions_stay_what_they_are() -> None:
    """Other languages can check themselves against these."""
    found = {name: partition_of(name, 8) for name in ("p-1", "123456789", "Zoë", "患者")}
    assert found == {"p-1": 7, "123456789": 6, "Zoë": 2, "患者": 1}


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (AskConsent(patient_id="p-1", by_entity="nurse", by_id="n", target="all"), "ask.7"),
        (GrantConsent(patient_id="p-1", to_entity="nurse", to_id="n", target="all"), "grant.7"),
        (
            RevokeConsent(patient_id="p-1", from_entity="nurse", from_id="n", target="all"),
            "revoke.7",
        ),
    ],
)
def test_a_command_is_sent_to_its_verb_and_partition(command: ConsentCommand, key: str) -> None:
    assert names.command_key(command, 8) == key


@pytest.mark.parametrize("good", ["x", "x" * 128, "😀" * 128, "a b", "Zoë", "患者"])
def test_an_id_is_one_to_128_code_points(good: str) -> None:
    assert ID.validate_python(good) == good


@pytest.mark.parametrize(
    "bad",
    ["", " ", "x" * 129, " x", "x ", "x\u00a0", "\u2028x", "a\x00b", "a\nb", "\x7f", "\x85x"],
)
def test_an_id_has_no_control_characters_and_nothing_invisible_at_its_ends(bad: str) -> None:
    with pytest.raises(ValidationError):
        ID.validate_python(bad)


def invalid(body: str) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        GrantConsent.model_validate_json(body)
    return {one.field: one.message for one in details_of(caught.value)}


def test_every_field_that_is_wrong_is_named_with_the_remedy() -> None:
    assert invalid('{"patient_id": 7, "to_entity": "friend", "extra": 1, "target": "exams"}') == {
        "patient_id": "Input should be a valid string",
        "to_entity": "Input should be 'patient', 'doctor' or 'nurse'",
        "to_id": "is required",
        "extra": "is not a field of this message; remove it",
    }


def test_the_patient_can_not_grant_consent_to_itself() -> None:
    body = '{"patient_id":"p","to_entity":"patient","to_id":"p","target":"exams"}'
    assert invalid(body) == {
        "to_id": "must not be the patient's own id: consent is for somebody else"
    }
    other_kind = GrantConsent.model_validate_json(body.replace('"patient","', '"doctor","'))
    assert other_kind.to_id == "p"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "7", '"x"', "null", "[" * 100_000, '{"a":"\\ud800"}']
)
def test_what_is_no_json_object_is_said_of_the_body(body: str) -> None:
    assert invalid(body).keys() == {"body"}


def test_a_flood_of_wrong_fields_gets_a_short_answer() -> None:
    body = json.dumps({"x" * 1000 + str(number): "secret" for number in range(1000)})
    with pytest.raises(ValidationError) as caught:
        GrantConsent.model_validate_json(body)
    details = details_of(caught.value)
    assert len(details) == MOST_DETAILS
    assert all(len(one.field) <= 64 and "secret" not in one.message for one in details)


@pytest.mark.parametrize("model", [ListConsents, GrantConsent])
def test_a_flood_of_unknown_fields_becomes_few_errors(model: type[BaseModel]) -> None:
    flood = json.dumps({f"f{number}": 0 for number in range(5_000)}).encode()
    with pytest.raises(ValidationError) as caught:
        read_json(model, flood)
    assert caught.value.error_count() <= MOST_FIELDS + len(model.model_fields)


PLACE = b'{"entity_name":"nurse","entity_id":"n","record_type":"exams","kind":"period","version":1}'


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"patient_id":"p","patient_id":"p"}', "patient_id"),
        (b'{"patient_id":"p","min_version":1,"min_version":2}', "min_version"),
        (b'{"patient_id":"p","after":%b}' % PLACE.replace(b"1", b'1,"version":2'), "version"),
        (b'{"patient_id":"a","patient\\u005fid":"b"}', "patient_id"),
    ],
)  # fmt: skip
def test_a_field_that_is_given_twice_is_named(body: bytes, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read_json(ConsentHistory, body)
    assert [one.field for one in details_of(caught.value)] == [field]


def test_quotation_marks_in_an_id_are_no_second_field() -> None:
    body = b'{"patient_id":"\\"p\\":\\"","limit":1}'
    assert read_json(ConsentHistory, body).patient_id == '"p":"'


def test_the_same_content_has_the_same_fingerprint_however_its_json_is_written() -> None:
    one = GrantConsent.model_validate_json(
        '{"patient_id":"p","to_entity":"doctor","to_id":"d","target":"exams"}'
    )
    same = GrantConsent.model_validate_json(
        '{ "target": "ex\\u0061ms", "to_id": "d", "to_entity": "doctor", "patient_id": "p" }'
    )
    other = RevokeConsent(patient_id="p", from_entity="doctor", from_id="d", target="exams")
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(other)


def test_consent_watch_has_words_for_every_kind_of_event() -> None:
    assert set(STYLES) == set(get_args(Fact))
