"""As of when a mirror has all, by where the logs ended when they were asked."""

from shared.client.mirror.heads import Heads
from shared.client.mirror.moments import Moment


def at(second: int) -> Moment:
    return Moment("boot", second, second)


def test_a_mirror_has_all_as_of_the_newest_end_that_it_has_reached() -> None:
    heads = Heads()
    heads.note(0, 10, at(1))
    heads.note(0, 20, at(2))
    heads.note(1, 5, at(2))
    assert heads.take_reached({0: 20, 1: 4}) == {0: at(2)}
    assert heads.take_reached({0: 20}) == {}
    assert heads.take_reached({1: 5}) == {1: at(2)}


def test_a_mirror_that_is_always_a_little_behind_has_all_again_and_again() -> None:
    heads = Heads()
    complete: list[float] = []
    for second in range(20):
        heads.note(0, second, at(second))
        reached = heads.take_reached({0: second - 3})
        complete += (moment.clock for moment in reached.values())
    assert complete == [0, 3, 6, 9, 12, 15]


def test_nothing_is_kept_of_what_is_asked_meanwhile_but_the_oldest_and_the_newest() -> None:
    heads = Heads()
    for second in range(1, 1000):
        heads.note(0, second, at(second))
    assert heads.take_reached({0: 998}) == {0: at(1)}
    assert heads.take_reached({0: 999}) == {0: at(999)}
