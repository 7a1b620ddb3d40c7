"""The benchmark's arithmetic, and that it does not believe figures over lost messages."""

from collections.abc import Callable

import pytest

from tests.bench import throughput
from tests.bench.bench import QUICK, Figure, Sizes, UnmetError, percentile
from tests.bench.cpu import NAMES, CpuReading
from tests.bench.grants import Grant, make_grants


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(one) for one in range(1, 201)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [100, 190, 198, 200]


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_what_was_not_measured_has_no_summary() -> None:
    assert Figure("nothing", "ms", []).summary() is None


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


def replies_to(grants: list[Grant]) -> list[throughput.Reply]:
    return [
        {"status": "accepted", "command_id": one.command_id, "version": 1 + number // 3}
        for number, one in enumerate(grants)
    ]


def test_replies_to_all_commands_are_believed() -> None:
    grants = make_grants(3, 2)
    throughput.check_replies(replies_to(grants), grants, SIZES)


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
    spoil: Callable[[list[throughput.Reply]], list[throughput.Reply]], complaint: str
) -> None:
    grants = make_grants(3, 2)
    with pytest.raises(UnmetError, match=complaint):
        throughput.check_replies(spoil(replies_to(grants)), grants, SIZES)
