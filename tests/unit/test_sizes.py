"""What is sent fits through what is let through."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest

import shared
from shared.errors import NoAnswer
from shared.event_log.log_client import PAGE, read_answer
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import MOST_SPANS, Change, Ended, History, Period
from shared.values.oversized import (
    KEPT,
    LARGEST_ANSWER,
    LARGEST_EVENT,
    LARGEST_REQUEST,
    Beginning,
    beginning,
    bounded,
    too_large,
)

WIDEST = "😀" * 128
ESCAPED = '"' * 255


def test_the_broker_of_the_images_lets_our_largest_answer_through() -> None:
    conf = (Path(shared.__file__).parent / "containers" / "rabbitmq.conf").read_text()
    (line,) = (one for one in conf.splitlines() if one.startswith("max_message_size"))
    assert int(line.split("=")[1]) == LARGEST_ANSWER


def test_the_largest_history_fits() -> None:
    change = Change(
        at=datetime(2026, 11, 23, tzinfo=UTC), version=2**63 - 1, command_id=uuid4(),
        issued_by=ESCAPED,
    )  # fmt: skip
    period = Period(
        entity_name="patient", entity_id=WIDEST, record_type="consultations",
        granted=change, until=change.at, ended=Ended(cause="extended", **dict(change)),
    )  # fmt: skip
    history = History(
        patient_id=WIDEST, version=2**63 - 1, periods=[period] * MOST_SPANS, requests=[]
    )
    assert len(history.to_json()) < LARGEST_ANSWER / 2


def test_the_largest_event_fits() -> None:
    event = CloudEvent(
        id=str(uuid4()), type="ConsentGranted", subject=WIDEST, time="2026-11-23T08:00:00.000000Z",
        schemaversion=1, partition=1023, position=2**63 - 1, streamversion=2**63 - 1,
        correlationid=ESCAPED, causationid=str(uuid4()), issuedby=ESCAPED,
        traceparent="0" * 55, tracestate='"' * 512,
        data={"patient_id": WIDEST, "to_entity": "patient", "to_id": WIDEST, "target": "er_visits"},
    )  # fmt: skip
    assert len(event.to_json()) < LARGEST_EVENT / 2


def test_a_beginning_knows_the_whole() -> None:
    whole = bytes(range(256)) * 1024
    kept = bounded(whole, LARGEST_REQUEST)
    assert isinstance(kept, Beginning)
    assert kept == whole[:KEPT]
    assert (kept.size, kept.sha256) == (len(whole), sha256(whole).hexdigest())
    assert beginning(kept) is kept
    assert "262,144" in (too_large(kept, LARGEST_REQUEST) or "")


def test_what_is_small_enough_stays_as_it_is() -> None:
    body = b"x" * LARGEST_REQUEST
    assert bounded(body, LARGEST_REQUEST) is body
    assert too_large(body, LARGEST_REQUEST) is None


def test_an_answer_that_is_too_large_is_not_read() -> None:
    with pytest.raises(NoAnswer, match="4,194,305 bytes"):
        read_answer(b'{"status":"ok","events":[],"head":0}'.ljust(LARGEST_ANSWER + 1), PAGE)
