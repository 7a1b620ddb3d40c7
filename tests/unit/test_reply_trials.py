"""Which addresses are trusted with others' replies, and who is tried first. Pure."""

from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st

from shared.rabbitmq.connection import Properties
from shared.rabbitmq.publishing import Outgoing
from shared.rabbitmq.reply_to.trials import (
    CONDEMNED_S,
    MOST_BYTES,
    MOST_TRIED,
    MOST_WAITING,
    Suspended,
    Trials,
    family,
)
from shared.values.bounded_set import BoundedSet


def address(node: str, number: int) -> str:
    process = b"\x83Xw" + bytes([len(node)]) + node.encode() + number.to_bytes(12, "big")
    return f"amq.rabbitmq.reply-to.{b64encode(process).decode()}.key{number}=="


def reply(to: str, size: int = 1) -> Outgoing:
    return Outgoing("", to, bytes(size), Properties())


def addresses(batch: list[Suspended]) -> list[str]:
    return [one.address for one in batch]


def tried_until_told_apart(trials: Trials, bad: set[str]) -> tuple[set[str], set[str], int]:
    """Play a broker that ends the connection for bad addresses.

    Return the good ones, the bad ones, and how many connections it cost to tell.
    """
    lost = 0
    good, condemned = set[str](), set[str]()
    while batch := trials.next():
        if not bad.intersection(addresses(batch)):
            trials.survived(batch)
            good.update(addresses(batch))
            continue
        lost += 1
        if len(batch) == 1:
            trials.condemn(batch[0], now=0)
            condemned.add(batch[0].address)
        else:
            trials.failed(batch)
    return good, condemned, lost


def test_what_is_forgotten_was_not_used_for_longest() -> None:
    remembered: BoundedSet[str] = BoundedSet(2)
    remembered.note("a")
    remembered.note("b")
    assert "a" in remembered
    remembered.note("c")
    assert ["a" in remembered, "b" in remembered, "c" in remembered] == [True, False, True]
    assert len(remembered) == 2


def test_addresses_of_one_node_are_a_family_whatever_their_form() -> None:
    assert family(address("reply@1", 1)) == family(address("reply@1", 2))
    assert family(address("reply@1", 1)) != family(address("reply@2", 1))
    odd = ("amq.rabbitmq.reply-to.", "amq.rabbitmq.reply-to.!.x", "amq.rabbitmq.reply-to.x")
    assert len({family(one) for one in odd}) == 3


@given(st.lists(st.booleans(), min_size=1, max_size=150))
def test_the_bad_are_told_from_the_good_and_only_they_are_condemned(is_bad: list[bool]) -> None:
    trials = Trials()
    names = [address(f"reply@{n}", n) for n in range(len(is_bad))]
    bad = {name for name, guilty in zip(names, is_bad, strict=True) if guilty}
    for name in names:
        assert trials.suspend(reply(name))
    good, condemned, lost = tried_until_told_apart(trials, bad)
    assert condemned == bad
    assert good == set(names) - bad
    assert lost <= len(bad) * (MOST_TRIED.bit_length() + 1)
    assert len(trials) == 0
    assert all(trials.is_proven(name) for name in good)
    assert all(trials.is_condemned(name, CONDEMNED_S - 1) for name in bad)
    assert not any(trials.is_condemned(name, CONDEMNED_S + 1) for name in bad)


def test_kin_of_the_proven_have_every_second_turn_however_many_strangers_wait() -> None:
    trials = Trials()
    trials.suspend(reply(address("rabbit", 1)))
    trials.survived(trials.next())
    for number in range(3 * MOST_WAITING):
        trials.suspend(reply(address(f"forged{number}", number)))
    assert trials.suspend(reply(address("rabbit", 2)))
    assert trials.suspend(reply(address("rabbit", 3)))
    assert len(trials) == MOST_WAITING + 2
    assert addresses(trials.next()) == [address("rabbit", 2), address("rabbit", 3)]
    trials.suspend(reply(address("rabbit", 4)))
    assert len(trials.next()) == MOST_TRIED
    assert addresses(trials.next()) == [address("rabbit", 4)]


def test_what_waits_is_bounded_by_number_and_by_size() -> None:
    trials = Trials()
    assert trials.suspend(reply(address("a", 1), MOST_BYTES))
    assert not trials.suspend(reply(address("a", 1)))
    trials.survived(trials.next())
    taken = [trials.suspend(reply(address("b", 1))) for _ in range(MOST_WAITING + 5)]
    assert taken.count(True) == MOST_WAITING
    assert len(trials) == MOST_WAITING


def test_all_that_were_proven_are_tried_again_once_one_is_in_doubt() -> None:
    trials = Trials()
    trials.suspend(reply(address("a", 1)))
    trials.survived(trials.next())
    assert trials.is_proven(address("a", 1))
    trials.doubt_all()
    assert not trials.is_proven(address("a", 1))
    trials.suspend(reply(address("a", 1)))
    assert addresses(trials.next()) == [address("a", 1)]
