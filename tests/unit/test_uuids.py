"""The driver's UUIDs are the standard library's to everybody else."""

from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.postgres.uuids import new_uuid, read_uuid


@given(st.uuids())
def test_what_is_read_is_the_same_uuid(theirs: UUID) -> None:
    for text in (str(theirs), str(theirs).upper()):
        ours = read_uuid(text)
        assert isinstance(ours, UUID)
        assert (ours, hash(ours), str(ours)) == (theirs, hash(theirs), str(theirs))


def test_what_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid UUID"):
        read_uuid("123e4567-e89b-42d3-a456-42661417400x")


def test_new_ones_are_random_as_the_standard_says() -> None:
    made = {new_uuid() for _ in range(1_000)}
    assert len(made) == 1_000
    assert {(one.version, one.variant) for one in made} == {(4, RFC_4122)}
