"""The persistent map against a dictionary."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from command_service.persistent_map import LEAF, PersistentMap


@dataclass(frozen=True)
class Key:
    """A key whose hash often is another one's, in all bits or in the lowest."""

    number: int

    def __hash__(self) -> int:
        return (self.number % 3) << 60 | self.number % 7


changes = st.lists(
    st.tuples(st.builds(Key, st.integers(0, 120)), st.none() | st.integers()), max_size=200
)


@given(st.integers(0, 3 * LEAF), changes)
def test_it_holds_what_a_dictionary_would_and_what_was_before_stays(
    size: int, changes: list[tuple[Key, int | None]]
) -> None:
    model: dict[Key, int] = {Key(number): number for number in range(size)}
    found = PersistentMap.of(model)
    versions = [(found, dict(model))]
    for key, value in changes:
        if value is None:
            model.pop(key, None)
            found = found.without(key)
        else:
            model[key] = value
            found = found.with_entry(key, value)
        assert len(found) == len(model)
        assert found.get(key) == model.get(key)
        versions.append((found, dict(model)))
    for earlier, expected in versions[:: len(versions) // 3 + 1]:
        assert dict(earlier) == expected
        assert earlier == PersistentMap.of(expected)


def test_a_large_one_is_not_copied_to_be_changed() -> None:
    before = PersistentMap.of({number: number for number in range(50_000)})
    after = before.with_entry(-1, 0)
    assert (len(before), len(after)) == (50_000, 50_001)
    assert before.without(7).get(7) is None
    assert before[7] == 7
    copied = {id(leaf) for leaf in after.leaves()} - {id(leaf) for leaf in before.leaves()}
    assert len(copied) == 1
