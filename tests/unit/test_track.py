"""The order of a partition's log: whatever arrives, each event is handed on once and in order."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from shared.event_log.position_tracker import Arrival, PositionTracker


def test_the_first_event_is_next_its_repeat_is_seen_and_a_later_one_is_behind_a_gap() -> None:
    track: PositionTracker[str] = PositionTracker(0)
    assert [track.place(position) for position in (1, 1, 3)] == [
        Arrival.NEXT,
        Arrival.SEEN,
        Arrival.GAP,
    ]


def test_what_is_held_is_released_in_order_once_the_gap_is_filled() -> None:
    track: PositionTracker[str] = PositionTracker(0)
    track.held |= {4: "four", 3: "three"}
    assert track.release() == []
    track.place(1)
    track.place(2)
    track.applied()
    assert track.release() == ["three", "four"]
    assert track.release() == []


def test_a_repeat_of_what_is_held_is_not_held_twice() -> None:
    track: PositionTracker[str] = PositionTracker(0, held={3: "three"})
    assert track.place(3) is Arrival.SEEN


def test_a_track_that_begins_anywhere_begins_with_what_arrives_first() -> None:
    track: PositionTracker[str] = PositionTracker(0, starts_at_first=True)
    assert [track.place(position) for position in (8, 7, 9, 11)] == [
        Arrival.NEXT,
        Arrival.SEEN,
        Arrival.NEXT,
        Arrival.GAP,
    ]


def test_a_position_that_the_log_does_not_have_is_taken_out() -> None:
    track: PositionTracker[str] = PositionTracker(0, held={5: "five", 9: "nine"})
    assert track.take_beyond(6, [5, 9, 12]) == ["nine"]
    assert track.held == {5: "five"}


@dataclass
class Following:
    """Plays a follower against a log of positions 1 to `head`, of which some are chosen."""

    head: int
    chosen: frozenset[int]
    track: PositionTracker[int]
    handed: list[int] = field(default_factory=list)

    def arrive(self, position: int) -> None:
        place = self.track.place(position)
        if place is Arrival.GAP:
            self.track.held[position] = position
        elif place is Arrival.NEXT:
            self._apply([position])

    def read_page(self, size: int, head: int) -> None:
        page = range(self.track.position + 1, min(self.track.position + size, head) + 1)
        self._apply([one for one in page if self.track.place(one) is Arrival.NEXT])
        self._release()

    def _apply(self, positions: list[int]) -> None:
        self.handed += [one for one in positions if one in self.chosen]
        self.track.applied()
        self._release()

    def _release(self) -> None:
        for position in self.track.release():
            self.arrive(position)


@given(data=st.data(), head=st.integers(0, 12))
def test_shuffled_repeated_and_lost_events_are_handed_on_once_each_and_in_order(
    data: st.DataObject, head: int
) -> None:
    positions = st.sampled_from(range(1, head + 1)) if head else st.nothing()
    steps = data.draw(st.lists(st.one_of(positions, st.just("read")), max_size=30))
    following = Following(head, frozenset(range(head + 1)), PositionTracker(0))
    for step in steps:
        if isinstance(step, int):
            following.arrive(step)
        else:
            following.read_page(3, head)
        assert following.handed == list(range(1, len(following.handed) + 1))
    for _ in range(head):
        following.read_page(3, head)
    assert following.handed == list(range(1, head + 1))
    assert not following.track.held
