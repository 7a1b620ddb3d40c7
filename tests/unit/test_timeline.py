"""The time line of a history: what it shows, how wide it gets, and that nothing in it breaks it."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any, Final
from uuid import UUID
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from shared.cli.timeline.layout import Axis, lay_out
from shared.cli.timeline.svg import picture
from shared.cli.timeline.text import ASCII, UNICODE, Glyphs, draw
from shared.client.history_pages import joined
from shared.messages.queries import Answered, Change, Ended, History, Period, Place, RequestMade
from shared.values.legible import visible

BEGAN: Final = datetime(2026, 1, 1, tzinfo=UTC)
NOW: Final = datetime(2026, 12, 1, tzinfo=UTC)
SVG: Final = "{http://www.w3.org/2000/svg}"


def change(version: int, day: float = 0, issued_by: str | None = None) -> Change:
    at = BEGAN + timedelta(days=day)
    return Change(at=at, version=version, command_id=UUID(int=version << 100), issued_by=issued_by)


def period(granted: Change, over: Change | None = None, **more: Any) -> Period:  # noqa: ANN401
    fields = {"entity_name": "doctor", "entity_id": "d-1", "record_type": "exams"} | more
    if over is not None:
        fields["ended"] = Ended(cause=fields.pop("cause", "revoked"), **dict(over))
    return Period(**fields, granted=granted)


def request(asked: Change, over: Change | None = None, **more: Any) -> RequestMade:  # noqa: ANN401
    fields = {"entity_name": "doctor", "entity_id": "d-1", "record_type": "exams"} | more
    if over is not None:
        fields["answered"] = Answered(how=fields.pop("how", "granted"), **dict(over))
    return RequestMade(**fields, asked=asked)


def history(*spans: Period | RequestMade, version: int = 9, **more: Any) -> History:  # noqa: ANN401
    return History(
        patient_id="p-1",
        version=version,
        periods=[one for one in spans if isinstance(one, Period)],
        requests=[one for one in spans if isinstance(one, RequestMade)],
        **more,
    )


def drawn(found: History, width: int = 100, glyphs: Glyphs = UNICODE) -> str:
    console = Console(width=width, record=True, file=StringIO())
    console.print(draw(lay_out(found, NOW), width, glyphs))
    return console.export_text()


def test_a_consent_in_force_reaches_to_now_and_an_ended_one_does_not() -> None:
    text = drawn(
        history(
            period(change(1, 10), change(2, 100)),
            period(change(3, 50), record_type="conditions"),
        )
    )
    bars = [line for line in text.splitlines() if "━" in line and "in force" not in line]
    conditions, exams = bars
    assert "conditions" in conditions
    assert conditions.rstrip().endswith("━▶")
    assert exams.rstrip().endswith("━┫")
    assert "now" in text


def test_requests_are_marked_where_they_were_made_until_they_are_answered() -> None:
    text = drawn(
        history(
            request(change(1, 0), change(2, 60)),
            period(change(2, 60), change(3, 120)),
            request(change(4, 200)),
        )
    )
    (row,) = (line for line in text.splitlines() if "━" in line and "exams" in line)
    bar = row.split("exams", 1)[1].strip()
    assert bar[0] == "?"
    assert bar.strip("?┄━┫ ") == ""
    assert bar.index("━") < bar.index("┫") < bar.rindex("?")
    assert bar.endswith("┄")
    assert "doctor d-1 asked for exams, pending" in text


def test_who_did_what_when_and_by_which_command_is_told_in_order() -> None:
    text = drawn(
        history(
            request(change(1, 0, "clinic-a"), change(2, 1)),
            period(change(2, 1, "portal"), change(3, 2)),
        ),
        width=140,
    )
    told = [line.split() for line in text.splitlines() if line.startswith("2026-01-0")]
    assert [" ".join(line[2:]) for line in told] == [
        f"doctor d-1 asked for exams {UUID(int=1 << 100)} clinic-a",
        f"exams granted to doctor d-1 {UUID(int=2 << 100)} portal",
        f"exams revoked from doctor d-1 {UUID(int=3 << 100)}",
    ]


def test_what_is_empty_or_incomplete_is_said() -> None:
    assert "nothing was ever granted or asked" in drawn(history(version=0))
    assert "until the read model is rebuilt" in drawn(history(complete=False))
    purged = history(complete=False, known_since=BEGAN)
    assert "ended up to 2026-01-01T00:00:00.000000Z was purged" in drawn(purged)


def test_many_changes_are_cut_and_it_is_said_how_many() -> None:
    spans = [period(change(2 * n, n), change(2 * n + 1, n + 0.5)) for n in range(1, 101)]
    assert "160 earlier changes" in drawn(history(*spans))


ids = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=128)
days = st.floats(0, 300)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(ids, days, st.none() | days, st.booleans()), max_size=8),
    st.integers(30, 160),
)
def test_nothing_in_a_history_breaks_a_line_or_the_picture(
    taken: list[tuple[str, float, float | None, bool]], width: int
) -> None:
    spans: list[Period | RequestMade] = []
    for number, (id_, first, second, asks) in enumerate(taken):
        begun = change(2 * number + 1, first, issued_by=id_)
        ended = None if second is None else change(2 * number + 2, first + second)
        make = request if asks else period
        spans.append(make(begun, ended, entity_id=id_))
    found = history(*spans)
    for glyphs in (UNICODE, ASCII):
        assert all(cell_len(line) <= width for line in drawn(found, width, glyphs).splitlines())
    root = ElementTree.fromstring(picture(lay_out(found, NOW)))  # noqa: S314 - our own
    bars = [one for one in root.iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None]
    assert len(bars) == len(found.periods)


def test_an_id_can_not_write_into_the_picture() -> None:
    evil = "</title><script>alert(1)</script>\ufffe"
    text = picture(lay_out(history(period(change(1), entity_id=evil)), NOW))
    assert "<script" not in text
    ElementTree.fromstring(text)  # noqa: S314 - our own
    assert visible("a\u202eb\x07") == "a\\u{202e}b\\u{7}"


@pytest.mark.parametrize(
    ("length", "label"),
    [
        (timedelta(seconds=3), "00:00:01"),
        (timedelta(minutes=20), "00:05"),
        (timedelta(hours=20), "06:00"),
        (timedelta(hours=30), "01-01 06:00"),
        (timedelta(days=6), "2026-01-03"),
        (timedelta(days=300), "2026-04"),
        (timedelta(days=3000), "2028"),
        (timedelta(days=200_000), "2100"),
    ],
)
def test_the_axis_is_labelled_at_round_moments(length: timedelta, label: str) -> None:
    labels = [tick.label for tick in Axis(BEGAN, BEGAN + length).ticks(5)]
    assert label in labels
    assert 1 <= len(labels) <= 6


def test_pages_read_while_things_change_are_joined_as_of_the_first() -> None:
    place = Place(
        entity_name="doctor", entity_id="d-1", record_type="exams", kind="period", version=1
    )
    pages = [
        history(period(change(1)), version=4, next=place),
        history(
            period(change(2), change(5)),
            period(change(3), change(4)),
            period(change(6)),
            request(change(2), change(6)),
            request(change(7)),
            version=7,
        ),
    ]
    assert joined(pages) == history(
        period(change(1)),
        period(change(2)),
        period(change(3), change(4)),
        request(change(2)),
        version=4,
    )
