"""Which faults, on what, for how long: all of it follows from the seed."""

from collections.abc import Iterator
from dataclasses import dataclass
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
    "zombie": 5,
    "delay": 5,
    "trickle": 4,
    "broker": 1,
    "database": 2,
    "terminate": 5,
}
"""How many faults of each kind come in a minute, shuffled."""

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
}

FIRST_AFTER_S = 3.0
LEASE_S = 5.0
BROKER_NOTICES_S = 15.0
"""After so long without a heartbeat the broker takes a connection for dead."""


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


def plan(seed: int, seconds: float) -> list[Fault]:
    """Plan the faults of a round; the same seed and length give the same plan."""
    random = Random(f"faults {seed}")  # noqa: S311 - to be played again, not to be secret
    minutes = int(seconds // 60) + 1
    faults = [fault for minute in range(minutes) for fault in _minute(random, minute * 60.0)]
    return [one for one in faults if one.at < seconds]


def _minute(random: Random, begins: float) -> Iterator[Fault]:
    kinds = [kind for kind, count in DECK.items() for _ in range(count)]
    random.shuffle(kinds)
    moments = sorted(random.uniform(FIRST_AFTER_S, 60.0) for _ in kinds)
    for at, kind in zip(moments, kinds, strict=True):
        yield _fault(random, begins + at, kind)


def _fault(random: Random, at: float, kind: str) -> Fault:
    variant = random.choice(_variants(kind))
    return Fault(
        at=round(at, 2),
        kind=kind,
        target=random.choice(TARGETS[kind]),
        variant=variant,
        seconds=round(_seconds(random, kind, variant), 2),
        amount=round(random.random(), 2),
    )


def _variants(kind: str) -> tuple[str, ...]:
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
    }.get(kind, ("",))


def _seconds(random: Random, kind: str, variant: str) -> float:
    if variant == "until the broker gives it up":
        return random.uniform(LEASE_S + 4, BROKER_NOTICES_S + 3)
    if kind == "zombie":
        return random.uniform(LEASE_S + 1.5, LEASE_S + 4)
    if kind == "freeze":
        return random.uniform(LEASE_S + 0.5, LEASE_S + 4)
    if kind in ("silence", "cut") and random.random() < 0.4:
        return random.uniform(LEASE_S, LEASE_S + 7)
    return random.uniform(0.3, LEASE_S)
