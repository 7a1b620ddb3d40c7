"""The time line of consent that ends by itself: what ended and why, and what is to come."""

from datetime import datetime, timedelta
from typing import Any, Final
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from shared.cli.timeline.layout import lay_out
from shared.cli.timeline.svg import picture
from shared.cli.timeline.text import ASCII, UNICODE
from shared.client.history_pages import joined
from shared.messages.queries import Change, Ended, Period, RequestMade
from tests.unit.test_timeline import (
    NOW,
    SVG,
    change,
    drawn,
    history,
    period,
    request,
)

SOON: Final = NOW + timedelta(days=60)


def row_of(text: str, record_type: str = "exams") -> str:
    """Cut out what is drawn of a record type."""
    rows = (line for line in text.splitlines() if record_type in line and "━" in line)
    return next(rows).split(record_type, 1)[1].strip()


def words(text: str) -> list[str]:
    """Cut out what is told of each change, without the command's id."""
    lines = [line for line in text.splitlines() if line.startswith("202") and ":" in line]
    return [" ".join(line.split()[2:]).rsplit(" 0000", 1)[0] for line in lines]


def expired(at: datetime) -> Ended:
    return Ended(cause="expired", at=at)


def test_an_extension_is_drawn_as_one_unbroken_time() -> None:
    first = period(change(1, 0), change(2, 100), cause="extended", until=change(9, 150).at)
    text = drawn(history(first, period(change(2, 100), change(3, 200))))
    assert set(row_of(text)) == {"━", "┫"}
    assert words(text) == [
        "exams granted to doctor d-1 until 2026-05-31 00:00:00",
        "exams extended for doctor d-1 without end",
        "exams revoked from doctor d-1",
    ]


def test_an_end_to_come_is_drawn_behind_now() -> None:
    text = drawn(history(period(change(1, 0), until=SOON)))
    bar = row_of(text)
    assert bar.rstrip("┤") == "━" * bar.count("━") + "╌" * bar.count("╌")
    assert bar.endswith("╌┤")
    axis = text.splitlines()[2]
    assert axis.index("now") < axis.index("2027-01")
    assert "╌ to come  ┤ its own end" in text


def test_a_far_end_and_none_leave_the_axis_and_the_past_keeps_its_room() -> None:
    far = period(change(1, 0), until=NOW.replace(year=2999))
    text = drawn(history(far, period(change(2, 10), record_type="conditions")))
    for record_type in ("exams", "conditions"):
        bar = row_of(text, record_type)
        assert bar.endswith("╌▶")
        assert bar.count("╌") < bar.count("━")


def test_what_ended_by_itself_is_told_though_nothing_has_recorded_it() -> None:
    end = change(9, 50).at
    over = period(change(1, 0), until=end).model_copy(update={"ended": expired(end)})
    text = drawn(history(over, period(change(2, 50), change(3, 60))))
    assert words(text) == [
        "exams granted to doctor d-1 until 2026-02-20 00:00:00",
        "exams ended for doctor d-1, as granted",
        "exams granted to doctor d-1",
        "exams revoked from doctor d-1",
    ]
    (alone,) = (line for line in drawn(history(over)).splitlines() if "━" in line and "d-1" in line)
    assert alone.rstrip().endswith("━┤")


def test_a_grant_that_ended_before_it_was_recorded_is_a_moment() -> None:
    ended = period(change(1, 50)).model_copy(update={"ended": expired(change(9, 49.9).at)})
    text = drawn(history(ended, period(change(2, 0), record_type="conditions")))
    (row,) = (line for line in text.splitlines() if "╋" in line and "granted and over" not in line)
    assert "━" not in row


def test_who_asked_until_when_and_how_that_was_answered_is_told() -> None:
    text = drawn(
        history(
            request(change(1, 0), change(2, 10), how="denied"),
            request(change(3, 20), change(4, 30), how="withdrawn", until=SOON),
            request(change(5, 40), change(6, 50)),
            request(change(7, 60), until=SOON),
        ),
        width=140,
    )
    until = "until 2027-01-30 00:00:00"
    assert words(text) == [
        "doctor d-1 asked for exams",
        "exams denied to doctor d-1",
        f"doctor d-1 asked for exams {until}",
        "doctor d-1 no longer asks for exams",
        "doctor d-1 asked for exams",
        f"doctor d-1 asked for exams {until}, pending",
    ]


def test_the_picture_tells_ends_as_well() -> None:
    over = period(change(1, 0), change(2, 50), cause="expired", until=change(9, 50).at)
    text = picture(lay_out(history(over, period(change(3, 60), until=SOON)), NOW))
    assert "until 2026-02-20T00:00:00.000000Z\nexpired 2026-02-20T00:00:00.000000Z" in text
    assert "until 2027-01-30T00:00:00.000000Z\nin force" in text
    assert "to come" in text


def test_pages_that_are_joined_keep_what_has_ended_by_itself() -> None:
    later = change(7, 50)
    parts: list[Period | RequestMade] = [
        period(change(1), later, cause="expired", entity_id="d-1"),
        period(change(2), later, cause="extended", entity_id="d-2"),
        request(change(3), later, how="denied"),
    ]
    found = joined([history(version=4), history(*parts, version=7)])
    assert [one.ended and one.ended.cause for one in found.periods] == ["expired", None]
    assert found.requests[0].answered is None


days = st.floats(0, 300)
causes = st.sampled_from(["revoked", "expired", "extended"])
ends = st.none() | st.floats(-10, 10_000)
spans = st.tuples(days, st.none() | days, causes, ends, st.booleans())


@settings(max_examples=40, deadline=None)
@given(st.lists(spans, max_size=5), st.integers(30, 160))
def test_no_end_breaks_a_line_or_the_picture(taken: list[Any], width: int) -> None:
    parts: list[Period | RequestMade] = []
    for number, (first, lasts, cause, end, asks) in enumerate(taken):
        until = None if end is None else NOW + timedelta(days=end)
        over: Change | None = None
        if lasts is not None:
            over = change(2 * number + 2, first + lasts)
        more: dict[str, Any] = {"until": until, "entity_id": f"d-{number}"}
        if asks:
            parts.append(request(change(2 * number + 1, first), over, **more, how="denied"))
        else:
            parts.append(period(change(2 * number + 1, first), over, **more, cause=cause))
    found = history(*parts)
    for glyphs in (UNICODE, ASCII):
        assert all(cell_len(line) <= width for line in drawn(found, width, glyphs).splitlines())
    root = ElementTree.fromstring(picture(lay_out(found, NOW)))  # noqa: S314 - our own
    bars = [one for one in root.iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None]
    assert len(bars) == len(found.periods)
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("width", "0")) >= 0
