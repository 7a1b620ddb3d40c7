"""The benchmark's arithmetic, and that it does not believe figures over lost messages."""

from collections.abc import Callable
from xml.etree.ElementTree import fromstring

import pytest

from tests.bench.bench import QUICK, TIMES, Figure, Goal, Section, Sizes, UnmetError, percentile
from tests.bench.cpu import NAMES, CpuReading
from tests.bench.grants import Grant, Reply, check_replies, make_grants, per_partition
from tests.bench.picture import GREEN, RED, bars, draw
from tests.bench.work import Work


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(one) for one in range(1, 201)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [100, 190, 198, 200]


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_what_was_not_measured_has_no_summary() -> None:
    assert Figure("nothing", "ms", []).summary() is None


def test_a_ratio_compares_what_was_measured_side_by_side() -> None:
    drifting = Figure("rate", "1/s", [100.0, 50.0, 200.0], limit=[200.0, 100.0, 400.0])
    assert drifting.ratio() == 0.5
    assert drifting.limit_median() == 200.0
    assert Figure("rate", "1/s", [100.0]).ratio() is None


@pytest.mark.parametrize(
    ("goal", "value", "limit", "reached"),
    [
        (Goal(at_least=0.75), 75.0, [100.0], True),
        (Goal(at_least=0.75), 74.0, [100.0], False),
        (Goal(at_most=3.0), 30.0, [10.0], True),
        (Goal(at_most=3.0), 31.0, [10.0], False),
        (Goal(at_least=0.35, no_less_than=15_000), 14_000.0, [20_000.0], False),
        (Goal(at_least=0.35, no_less_than=15_000), 16_000.0, [20_000.0], True),
        (Goal(no_more_than=1.0), 0.9, [], True),
        (Goal(at_least=0.75), 75.0, [], None),
        (None, 75.0, [100.0], None),
    ],
)
def test_a_goal_is_reached_or_not_or_nobody_can_tell(
    goal: Goal | None, value: float, limit: list[float], reached: bool | None
) -> None:
    assert Figure("one", "1/s", [value], limit, goal).reached() is reached


def test_a_goal_says_what_it_asks_for() -> None:
    assert str(Goal(at_least=0.35, no_less_than=15_000)) == f"≥ 0.35{TIMES} and ≥ 15,000"
    assert str(Goal(at_most=3)) == f"≤ 3{TIMES}"


def test_the_picture_has_a_bar_for_each_goal_and_its_colour_tells_whether_it_is_reached() -> None:
    figures = [
        Figure("good", "1/s", [90.0], [100.0], Goal(at_least=0.75)),
        Figure("slow", "ms", [40.0], [10.0], Goal(at_most=3.0)),
        Figure("only told", "ms", [1.0]),
        Figure("not measured", "1/s", [], [], Goal(at_least=0.75)),
    ]
    sections = [Section("All", [], figures)]
    assert [(one.name, one.reached) for one in bars(sections)] == [("good", True), ("slow", False)]
    assert [round(one.share, 2) for one in bars(sections)] == [1.2, 0.75]
    svg = fromstring(draw(sections, "today"))  # noqa: S314 - our own
    fills = [one.get("fill") for one in svg.iter("{http://www.w3.org/2000/svg}rect")]
    assert fills == ["white", GREEN, RED]


def test_every_grant_is_counted_where_it_goes() -> None:
    grants = make_grants(20, 5)
    counts = per_partition(grants, 4)
    assert len(counts) == 4
    assert sum(counts) == 100
    assert all(count % 5 == 0 for count in counts), "a patient stays in one partition"


def test_work_between_two_readings_is_told_per_batch() -> None:
    work = Work(14, 60, 30).since(Work(4, 20, 10))
    assert work.statements_per_batch() == 4
    assert work.fsyncs_per_batch() == [2]
    assert Work(14, 60, None).since(Work(4, 20, None)).fsyncs_per_batch() == []


def test_no_two_grants_are_alike() -> None:
    grants = make_grants(20, 5)
    assert len({(one.patient_id, one.doctor_id) for one in grants}) == 100
    assert len({one.command_id for one in grants}) == 100


def test_others_are_not_told_apart_where_a_part_is_out_of_sight() -> None:
    parts = dict.fromkeys(NAMES, 1.0)
    assert CpuReading(parts, 1.0, 6.0, 10.0).used_by_others() == 0.0
    del parts["broker"]
    assert CpuReading(parts, 1.0, 6.0, 10.0).used_by_others() is None


SIZES = Sizes(**(vars(QUICK) | {"patients": 3, "grants_per_patient": 2}))


def replies_to(grants: list[Grant]) -> list[Reply]:
    return [
        {"status": "accepted", "command_id": one.command_id, "version": 1 + number // 3}
        for number, one in enumerate(grants)
    ]


def test_replies_to_all_commands_are_believed() -> None:
    grants = make_grants(3, 2)
    check_replies(replies_to(grants), grants, SIZES)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda replies: replies[:-1], "1 commands have no reply"),
        (lambda replies: [*replies, replies[0]], "a reply twice"),
        (lambda replies: [replies[0] | {"status": "rejected"}, *replies[1:]], "was rejected"),
        (lambda replies: [replies[0] | {"version": 2}, *replies[1:]], "for 1 patients"),
    ],
)
def test_figures_over_faulty_replies_are_not_believed(
    spoil: Callable[[list[Reply]], list[Reply]], complaint: str
) -> None:
    grants = make_grants(3, 2)
    with pytest.raises(UnmetError, match=complaint):
        check_replies(spoil(replies_to(grants)), grants, SIZES)
