"""A mirror's file: what events make of it, whatever its writers and the clocks do."""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.client import ConsentMirror, Stale
from shared.client.mirror import moments
from shared.client.mirror.database import open_to_read, sql
from shared.client.mirror.ends import NO_END, NOTHING, PLACES, allows, evolve, microseconds
from shared.client.mirror.moments import Moment, now, seconds_since
from shared.client.mirror.reading import Reading
from shared.client.mirror.writer import Writer
from shared.errors import LogSetBack, NotNow, SchemaError, SettingsError
from shared.event_log.set_back import LogPlace
from shared.messages.cloud_event import CloudEvent
from shared.messages.events import (
    ConsentAsked,
    ConsentDenied,
    ConsentEvent,
    ConsentExpired,
    ConsentGranted,
    ConsentRevoked,
)
from shared.values.vocabulary import RECORD_TYPES

PARTITIONS: Final = 2
START: Final = datetime(2027, 1, 1, tzinfo=UTC)
WHO: Final[dict[str, Any]] = {"patient_id": "p-1", "to_entity": "doctor", "to_id": "d-1"}
FROM: Final[dict[str, Any]] = {"patient_id": "p-1", "from_entity": "doctor", "from_id": "d-1"}
_IDS = count()


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def granted(target: Any = "exams", until: datetime | None = None) -> ConsentGranted:  # noqa: ANN401
    return ConsentGranted(**WHO, target=target, expires_at=until)


def revoked(target: Any = "exams") -> ConsentRevoked:  # noqa: ANN401
    return ConsentRevoked(**FROM, target=target)


def expired(until: datetime, target: Any = "exams") -> ConsentExpired:  # noqa: ANN401
    return ConsentExpired(**WHO, target=target, expires_at=until)


def recorded(event: ConsentEvent, position: int, partition: int = 0) -> CloudEvent:
    return CloudEvent(
        id=f"event-{next(_IDS)}",
        type=type(event).__name__,
        subject=event.patient_id,
        time="2027-01-01T00:00:00.000000Z",
        schemaversion=event.schema_version,
        partition=partition,
        position=position,
        streamversion=position,
        correlationid="",
        causationid="",
        data=event.model_dump(mode="json", exclude_none=True),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mirror.db"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with Writer.open(path, PARTITIONS) as opened:
        yield opened


def ends(path: Path) -> Sequence[int | None]:
    reading = Reading(path, PARTITIONS)
    try:
        return reading.ends("p-1", "doctor", "d-1")
    finally:
        reading.close()


def test_the_columns_of_the_file_are_the_record_types_in_their_order(
    writer: Writer, path: Path
) -> None:
    del writer
    connection = open_to_read(path, PARTITIONS)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(consents)")]
    connection.close()
    assert tuple(columns[3:]) == RECORD_TYPES
    assert f"SELECT {', '.join(RECORD_TYPES)}" in sql("read_ends")


@pytest.mark.parametrize(
    ("story", "moment", "held"),
    [
        ([granted()], 10**6, True),
        ([granted(), revoked()], 0, False),
        ([granted(until=at(10))], 9, True),
        ([granted(until=at(10))], 10, False),
        ([granted(until=at(10)), granted(until=at(20))], 19, True),
        ([granted(until=at(10)), granted()], 10**6, True),
        ([granted(until=at(20)), granted(until=at(10))], 19, True),
        ([granted(until=at(10)), expired(at(10))], 9, False),
        ([granted(until=at(10)), granted(until=at(20)), expired(at(10))], 19, True),
        ([granted(until=at(10)), revoked(), granted(until=at(5))], 7, False),
        ([granted(), expired(at(10))], 10**6, True),
        ([granted("conditions")], 0, False),
    ],
)
def test_in_force_is_what_was_granted_and_not_revoked_and_is_not_at_its_end(
    writer: Writer, path: Path, story: list[ConsentEvent], moment: int, held: bool
) -> None:
    for position, event in enumerate(story, 1):
        writer.apply([recorded(event, position)], {})
    assert allows(ends(path), "exams", microseconds(at(moment))) is held


def test_an_end_counts_to_the_microsecond(writer: Writer, path: Path) -> None:
    end = datetime(2027, 5, 1, 12, 0, 0, 123457, tzinfo=UTC)
    writer.apply([recorded(granted(until=end), 1)], {})
    assert allows(ends(path), "exams", microseconds(end) - 1)
    assert not allows(ends(path), "exams", microseconds(end))


def test_who_asks_or_is_denied_is_not_in_the_file(writer: Writer, path: Path) -> None:
    asked = ConsentAsked(patient_id="p-1", by_entity="doctor", by_id="d-1", target="exams")
    denied = ConsentDenied(**WHO, target="exams")
    writer.apply([recorded(asked, 1), recorded(denied, 2)], {})
    assert ends(path) == NOTHING


events = st.one_of(
    st.builds(granted, st.sampled_from(RECORD_TYPES), st.none() | st.integers(1, 9).map(at)),
    st.builds(revoked, st.sampled_from(RECORD_TYPES)),
    st.builds(
        lambda end, target: expired(at(end), target),
        st.integers(1, 9),
        st.sampled_from(RECORD_TYPES),
    ),
)


@settings(deadline=None, max_examples=40)  # it waits for a disk
@given(st.lists(st.lists(events, min_size=1, max_size=6), max_size=6))
def test_batches_leave_what_each_event_alone_would(batches: list[list[ConsentEvent]]) -> None:
    expected, position = NOTHING, 0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mirror.db"
        with Writer.open(path, PARTITIONS) as writer:
            for batch in batches:
                writer.apply([recorded(one, position + n) for n, one in enumerate(batch, 1)], {})
                position += len(batch)
                for event in batch:
                    expected = evolve(expected, event)
            assert writer.reached[0].position == position
            assert ends(path) == expected


@given(st.lists(events), events)
def test_twice_equals_once(story: list[ConsentEvent], event: ConsentEvent) -> None:
    state = NOTHING
    for one in story:
        state = evolve(state, one)
    assert evolve(evolve(state, event), event) == evolve(state, event)


def test_all_is_every_record_type() -> None:
    everything = (NO_END,) * len(RECORD_TYPES)
    assert allows(everything, "all", 0)
    for place in PLACES["all"]:
        assert not allows((*everything[:place], None, *everything[place + 1 :]), "all", 0)


def test_a_second_writer_takes_no_event_twice_and_leaves_none_out(
    writer: Writer, path: Path
) -> None:
    with Writer.open(path, PARTITIONS) as other:
        other.apply([recorded(granted(), 1)], {})
        with pytest.raises(NotNow, match="another process"):
            writer.apply([recorded(revoked(), 1)], {})
        with pytest.raises(NotNow, match="another process"):
            writer.replace_patient("p-1", 0, [])
    assert allows(ends(path), "exams", 0)
    with Writer.open(path, PARTITIONS) as third:
        assert third.reached[0].position == 1


def test_what_a_writer_had_not_committed_is_not_there(path: Path) -> None:
    with Writer.open(path, PARTITIONS) as writer:
        first = recorded(granted(), 1)
        writer.apply([first], {})
        with pytest.raises(IndexError):
            writer.apply([recorded(revoked(), 2), recorded(granted(), 1, partition=PARTITIONS)], {})
        assert writer.reached[0] == LogPlace(1, first.id)
    assert allows(ends(path), "exams", 0)


def test_a_disk_that_is_full_leaves_all_as_it_was(writer: Writer, path: Path) -> None:
    connection = sqlite3.connect(path)
    full = "SELECT RAISE(FAIL, 'disk is full')"
    connection.execute(f"CREATE TRIGGER full BEFORE INSERT ON consents BEGIN {full}; END")
    connection.close()
    with pytest.raises(NotNow, match="can't be written: disk is full"):
        writer.apply([recorded(granted(), 1)], {0: now()})
    assert writer.reached[0].position == 0
    with Writer.open(path, PARTITIONS) as again:
        assert again.reached[0].position == 0
    with (
        pytest.raises(NotNow, match="can't be written: unable to open"),
        Writer.open(path / "none" / "mirror.db", PARTITIONS),
    ):
        pass


def test_of_a_patient_with_an_event_that_can_not_be_read_nothing_is_said(
    writer: Writer, path: Path
) -> None:
    newer = recorded(revoked(), 2).model_copy(update={"schemaversion": 99})
    writer.apply([recorded(granted(), 1), newer, recorded(granted("conditions"), 3)], {0: now()})
    reading = Reading(path, PARTITIONS)
    reading.expect_known(0, "p-2", 10)
    with pytest.raises(Stale, match="can't be read"):
        reading.expect_known(0, "p-1", 10)
    writer.replace_patient("p-1", 0, [granted(), revoked(), granted("conditions")])
    reading.close()
    reading = Reading(path, PARTITIONS)
    reading.expect_known(0, "p-1", 10)
    assert reading.ends("p-1", "doctor", "d-1") == (None, None, NO_END, None)
    reading.close()


def test_a_clock_that_is_set_back_or_stood_still_makes_nothing_younger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    then = now()
    with monkeypatch.context() as changed:
        changed.setattr(time, "time", lambda: then.wall - 3600)
        changed.setattr(moments, "clock", lambda: then.clock + 7)
        assert seconds_since(then) == 7
    with monkeypatch.context() as changed:
        changed.setattr(time, "time", lambda: then.wall + 3600)
        changed.setattr(moments, "clock", lambda: then.clock)
        assert seconds_since(then) == 3600
    assert seconds_since(Moment("another run of this host", then.clock, then.wall)) == float("inf")
    assert seconds_since(None) == float("inf")


def test_what_was_never_known_to_the_end_is_stale(writer: Writer, path: Path) -> None:
    writer.note_complete({1: now()})
    writer.note_trouble("NoAnswer: nobody is there")
    reading = Reading(path, PARTITIONS)
    reading.expect_known(1, "p-1", 10)
    with pytest.raises(Stale, match=r"partition 0 was known to its end never.*nobody is there"):
        reading.expect_known(0, "p-1", 10)
    reading.close()


def test_a_log_that_was_set_back_is_refused_by_name(writer: Writer, path: Path) -> None:
    writer.note_complete({0: now(), 1: now()})
    writer.note_trouble("LogSetBack: it has another event", set_back=True)
    reading = Reading(path, PARTITIONS)
    with pytest.raises(LogSetBack, match="another event"):
        reading.expect_known(0, "p-1", 10)
    reading.close()


def test_a_file_that_is_removed_or_replaced_is_noticed(writer: Writer, path: Path) -> None:
    writer.note_complete({})
    reading = Reading(path, PARTITIONS)
    assert reading.is_of_the_file()
    path.rename(path.with_suffix(".old"))
    assert not reading.is_of_the_file()
    reading.close()
    with pytest.raises(NotNow, match="removed or replaced"):
        writer.note_complete({})


def test_a_file_of_another_deployment_or_version_is_refused(writer: Writer, path: Path) -> None:
    del writer
    with pytest.raises(SettingsError, match="is of a deployment of 2 partitions, not 3"):
        Reading(path, 3)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(SchemaError, match="has format 7, and this version reads 1"):
        Reading(path, PARTITIONS)


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(Stale, match="not there yet, or not whole"):
        Reading(path, PARTITIONS)


def test_the_file_is_for_its_owner_alone(writer: Writer, path: Path) -> None:
    writer.note_complete({})
    modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_a_fork_does_not_use_what_is_its_parents(path: Path) -> None:
    with Writer.open(path, PARTITIONS) as writer:
        writer.note_complete({0: now(), 1: now()})
    with ConsentMirror("amqp://guest@127.0.0.1:1/", path, partitions=PARTITIONS) as mirror:
        assert not mirror.has_consent("p-1", "doctor", "d-1", max_age=3600)
        child = os.fork()
        if child == 0:
            try:
                mirror.has_consent("p-1", "doctor", "d-1", max_age=3600)
            except Stale:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert not mirror.has_consent("p-1", "doctor", "d-1", max_age=3600)


def test_any_thread_may_ask_and_a_mirror_may_be_opened_again(path: Path) -> None:
    with Writer.open(path, PARTITIONS) as writer:
        writer.apply([recorded(granted(), 1)], {0: now(), 1: now()})
    mirror = ConsentMirror("amqp://guest@127.0.0.1:1/", path, partitions=PARTITIONS, max_age=3600)
    for _ in range(2):
        with mirror, ThreadPoolExecutor(4) as threads:
            question = ("p-1", "doctor", "d-1", "exams")
            asked = [threads.submit(mirror.has_consent, *question) for _ in range(40)]  # type: ignore[arg-type]
            assert all(one.result() for one in asked)
            assert mirror.has_consent("p-1", "doctor", "d-1", "exams")


def test_outside_its_block_and_for_words_that_are_none_nothing_is_answered(path: Path) -> None:
    mirror = ConsentMirror("amqp://guest@127.0.0.1:1/", path, partitions=PARTITIONS)
    with pytest.raises(Stale, match="in its `with` block"):
        mirror.has_consent("p-1", "doctor", "d-1")
    with pytest.raises(ValueError, match="no entity or no permission"):
        mirror.has_consent("p-1", "Doctor", "d-1")  # type: ignore[arg-type]
    nowhere = ConsentMirror("amqp://guest@127.0.0.1:1/", path.parent / "none" / "mirror.db")
    with pytest.raises(SettingsError, match="has no folder"):
        nowhere.__enter__()
