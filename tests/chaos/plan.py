"""Which faults, on what, for how long: all of it follows from the seed."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from random import Random

SLOTS = ("command-0", "command-1", "projection-0", "projection-1")
DATABASES = ("event_store", "read_model")
WIRES = tuple(f"{slot}/{end}" for slot in SLOTS for end in ("broker", "database"))
SENDERS = ("sender-0", "sender-1")

DECK = {
    "kill": 7,
    "freeze": 6,
    "stop": 4,
    "cut": 9,
    "silence": 4,
    "zombie": 4,
    "delay": 5,
    "trickle": 4,
    "broker": 1,
    "database": 2,
    "terminate": 5,
    "stall": 2,
    "trap": 2,
    "block": 2,
    "giant": 3,
    "forge": 2,
}
"""How many faults of each kind come in a minute, shuffled."""
ON_A_CLUSTER = {"broker": 2}

TARGETS = {
    "kill": SLOTS,
    "freeze": SLOTS,
    "stop": SLOTS,
    "cut": WIRES + SENDERS,
    "silence": WIRES + SENDERS,
    "zombie": ("command", "projection"),
    "delay": WIRES,
    "trickle": WIRES,
    "broker": ("broker",),
    "database": DATABASES,
    "terminate": DATABASES,
    "stall": ("command", "projection"),
    "trap": ("subscriber",),
    "block": ("broker",),
    "giant": ("giants",),
    "forge": ("reply_to",),
}

NEIGHBOURS = frozenset({"trap", "giant", "forge"})
"""What others do who share the broker, and what must stop nobody."""
OVER_AFTER_S = 20.0
"""So long after a fault of another kind, answers may still be late for its sake."""

FIRST_AFTER_S = 3.0
STALLS_EVERY_S = 25.0
STALLS_WITHIN_S = 7.0
"""Of such a time's beginning: each needs some peace, in which the other faults wait, and not for
two in a row. And they are long."""
LATE_S = 20.0
"""What could not begin so long after the end of a round, since others were in its way, is left
out, and a long silence already at its end: however many wait for each other, the faults end."""
LEASE_S = 5.0
BROKER_NOTICES_S = 15.0
"""After so long without a heartbeat the broker takes a connection for dead."""
LASTING_S = {"stall": (30.0, 40.0), "trap": (5.0, 9.0), "block": (2.0, 5.0), "forge": (4.0, 6.0)}

ANSWERED_WITHIN_S = 10.0
"""Where a worker's database falls silent, another one answers within this time."""
MARGIN_S = 3.0
"""More, for a machine that is as busy as one in a round of chaos."""

REPEATS_AFTER = dict.fromkeys(DECK, 60) | {
    "delay": 0,
    "trickle": 0,
    "trap": 20,
    "giant": 5,
    "forge": 5,
}
"""How many events each fault of a kind may bring the subscriber once more.

Whatever ends a session has what was sent and not yet noted as sent be sent again. Most faults do:
rounds had 5 to 33 repeats for each of them, since some meet a burst behind an outage, of which a
window of 500 is under way. So this leaves room for bad luck; of workers that noted what was sent
every 15 s only, a round had 215 for each.

A full queue beside it costs a subscriber the windows in hand, which are offered once more: two
events in rounds of these alone. A message or an address that is refused costs it nothing; a few are
let pass, since a slow machine may end a session, too.
"""
MOST_COPIES = 8
"""Of one event: each fault may repeat it, but the same event meets few of them in a row."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a planned moment."""

    at: float
    kind: str
    target: str
    variant: str
    seconds: float
    amount: float
    """0 to 1; how slow, or how much, as the kind of fault has it."""


CLUSTER = {"broker": ("kill", "freeze", "stop"), "database": ("kill", "freeze", "stop")}
"""Of a cluster's nodes, or a pair of databases, one at a time is lost, in these ways."""


def plan(
    seed: int, seconds: float, only: Collection[str] = (), *, cluster: bool = False
) -> list[Fault]:
    """Plan the faults of a round; the same seed and length give the same plan.

    Where `only` names kinds, all others are left out of it; nothing else changes.
    """
    random = Random(f"faults {seed}")  # noqa: S311 - to be played again, not to be secret
    minutes = int(seconds // 60) + 1
    deck = DECK | (ON_A_CLUSTER if cluster else {})
    faults = [
        fault
        for minute in range(minutes)
        for fault in _minute(random, minute * 60.0, deck, cluster)
    ]
    return [one for one in faults if one.at < seconds and (not only or one.kind in only)]


def repeats_allowed(happened: Counter[str]) -> int:
    """Say how many repeats a subscriber may get of that many faults of each kind."""
    return sum(REPEATS_AFTER[kind] * count for kind, count in happened.items() if kind in DECK)


def _minute(
    random: Random, begins: float, deck: Mapping[str, int], cluster: bool
) -> Iterator[Fault]:
    moments = sorted(
        (_moment(random, kind, number, deck), kind) for kind in deck for number in range(deck[kind])
    )
    # In turns, so that a minute has every variant on every target, as far as there are as many.
    targets = {kind: _in_turns(random, TARGETS[kind]) for kind in DECK}
    variants = {kind: _in_turns(random, _variants(kind, cluster)) for kind in DECK}
    for at, kind in moments:
        yield _fault(random, begins + at, kind, next(targets[kind]), next(variants[kind]))


def _moment(random: Random, kind: str, number: int, deck: Mapping[str, int]) -> float:
    if kind == "stall":
        return FIRST_AFTER_S + number * STALLS_EVERY_S + random.uniform(0, STALLS_WITHIN_S)
    # Each in its own part of the minute, lest the broker be away for half of it.
    part = (60.0 - FIRST_AFTER_S) / deck[kind]
    return FIRST_AFTER_S + part * (number + random.random())


def _in_turns(random: Random, choices: tuple[str, ...]) -> Iterator[str]:
    return cycle(random.sample(choices, k=len(choices)))


def _fault(random: Random, at: float, kind: str, target: str, variant: str) -> Fault:
    return Fault(
        at=round(at, 2),
        kind=kind,
        target=target,
        variant=variant,
        seconds=round(_seconds(random, kind, variant), 2),
        amount=round(random.random(), 2),
    )


def _variants(kind: str, cluster: bool) -> tuple[str, ...]:
    if cluster and kind in CLUSTER:
        return CLUSTER[kind]
    return {
        # Before its end, a worker may be made deaf or dumb towards a dependency: it then ends
        # between asking and being answered.
        "kill": ("now", "database up", "database down", "broker up", "broker down"),
        # Asked once; asked twice; and where it can't finish, so that its time runs out.
        "stop": ("once", "twice", "without its database"),
        "freeze": ("past its lease", "past its lease", "until the broker gives it up"),
        "cut": ("once", "refusing", "torn"),
        "silence": ("up", "down", "both"),
        # Its statements arrive after it has lost its lease; with its deliveries taken, or not.
        "zombie": ("with its broker", "without its broker"),
        "broker": ("kill", "kill", "kill", "stop"),
        "database": ("kill", "kill", "stop"),
        # What was held back arrives in the end, or never.
        "stall": ("carried on", "cut at last"),
        "block": ("memory", "disk"),
        # Each is read by another part of the services.
        "giant": ("AskConsent", "ReadEvents", "ListConsents"),
        # No process at all; and one that can be read, of a node that is not there.
        "forge": ("truncated", "of nowhere"),
    }.get(kind, ("",))


def _seconds(random: Random, kind: str, variant: str) -> float:
    if variant == "until the broker gives it up":
        return random.uniform(LEASE_S + 4, BROKER_NOTICES_S + 3)
    if kind in LASTING_S:
        return random.uniform(*LASTING_S[kind])
    if kind == "zombie":
        return random.uniform(LEASE_S + 1.5, LEASE_S + 4)
    if kind == "freeze":
        return random.uniform(LEASE_S + 0.5, LEASE_S + 4)
    if kind in ("silence", "cut") and random.random() < 0.4:
        return random.uniform(LEASE_S, LEASE_S + 7)
    return random.uniform(0.3, LEASE_S)
