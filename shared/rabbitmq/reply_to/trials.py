"""Which direct addresses replies may go to with others', which are tried first, and how. Pure.

An address is *proven* once a reply went there and the connection lived on; it is *condemned* for a
while where a reply to it, sent alone, ended one. All others wait for a trial, some together. Those
of a *family* that has a proven address have every second turn, all of them at once: a broker's
node gives all of its clients addresses of one family, so no forger who makes names up can stand in
their way.
"""

from base64 import b64decode
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from shared.rabbitmq.publishing import Outgoing
from shared.values.bounded_set import BoundedSet

PROCESS_NUMBERS: Final = 12
"""Bytes at the end of an Erlang process id that tell the processes of one node apart."""
MOST_PROVEN: Final = 10_000
MOST_FAMILIES: Final = 1_000
MOST_CONDEMNED: Final = 10_000
CONDEMNED_S: Final = 60.0
"""Short, since a broker that loses a node ends connections for addresses that were good."""
MOST_TRIED: Final = 64
"""Addresses of strangers that are tried at once; of each failure only one half is to blame."""
MOST_WAITING: Final = 2_000
MOST_BYTES: Final = 16 << 20


@dataclass(eq=False, slots=True)
class Suspended:
    """The replies to one address that wait for its trial."""

    address: str
    room: "Room"
    messages: list[Outgoing] = field(default_factory=list)
    failures: int = 0
    """How often a connection was lost with it, nobody knows why."""


@dataclass(eq=False, slots=True)
class Room:
    """How much may wait still."""

    messages: int = MOST_WAITING
    size: int = MOST_BYTES

    def takes(self, message: Outgoing) -> bool:
        """Take a message in, where there is room for it."""
        if self.messages < 1 or self.size < len(message.body):
            return False
        self.messages -= 1
        self.size -= len(message.body)
        return True

    def gives_back(self, messages: Iterable[Outgoing]) -> None:
        """Have room again."""
        for message in messages:
            self.messages += 1
            self.size += len(message.body)


class Trials:
    """What is known of addresses, and the replies that wait until more is."""

    def __init__(self) -> None:
        self._proven: BoundedSet[str] = BoundedSet(MOST_PROVEN)
        self._families: BoundedSet[bytes] = BoundedSet(MOST_FAMILIES)
        self._condemned: dict[str, float] = {}
        self._kin: dict[str, Suspended] = {}
        """Of families that have a proven address."""
        self._strangers: dict[str, Suspended] = {}
        self._suspects: deque[list[Suspended]] = deque()
        """Strangers who were tried together in vain; halves of halves, the next one first."""
        self._room_of_kin = Room()
        self._room_of_strangers = Room()
        """Apart, so that these can't crowd those out."""
        self._strangers_turn = False

    def __len__(self) -> int:
        """How many replies wait."""
        rooms = (self._room_of_kin, self._room_of_strangers)
        return sum(MOST_WAITING - room.messages for room in rooms)

    def is_proven(self, address: str) -> bool:
        """Whether replies there have never done harm."""
        return address in self._proven

    def is_condemned(self, address: str, now: float) -> bool:
        """Whether a reply there ended a connection a short while ago."""
        until = self._condemned.get(address)
        return until is not None and now < until

    def suspend(self, message: Outgoing) -> bool:
        """Have a reply wait for the trial of its address; False where there is no room."""
        address = message.routing_key
        is_kin = family(address) in self._families
        waiting, room = (
            (self._kin, self._room_of_kin) if is_kin else (self._strangers, self._room_of_strangers)
        )
        if not room.takes(message):
            return False
        waiting.setdefault(address, Suspended(address, room)).messages.append(message)
        return True

    def next(self) -> list[Suspended]:
        """Take out those to try together now; none where nobody waits."""
        others = bool(self._suspects or self._strangers)
        if self._kin and not (self._strangers_turn and others):
            self._strangers_turn = True
            batch, self._kin = list(self._kin.values()), {}
            return batch
        self._strangers_turn = False
        if self._suspects:
            return self._suspects.popleft()
        batch = list(self._strangers.values())[:MOST_TRIED]
        for suspended in batch:
            del self._strangers[suspended.address]
        return batch

    def survived(self, batch: Sequence[Suspended]) -> None:
        """Note that these replies went out, and the connection lives on."""
        for suspended in batch:
            self._proven.note(suspended.address)
            self._families.note(family(suspended.address))
            suspended.room.gives_back(suspended.messages)

    def failed(self, batch: Sequence[Suspended]) -> None:
        """Note that the connection was lost with these, one of which may be to blame."""
        half = (len(batch) + 1) // 2
        for part in (batch[half:], batch[:half]):
            if part:
                self._suspects.appendleft(list(part))

    def condemn(self, suspended: Suspended, now: float) -> None:
        """Give these replies up, and those that come for a while."""
        self._condemned.pop(suspended.address, None)
        self._condemned[suspended.address] = now + CONDEMNED_S
        if len(self._condemned) > MOST_CONDEMNED:
            del self._condemned[next(iter(self._condemned))]
        suspended.room.gives_back(suspended.messages)

    def doubt_all(self) -> None:
        """Prove every address anew: what was proven has ended a connection, or a broker."""
        self._proven.clear()


def family(address: str) -> bytes:
    """Return what a direct address tells of its broker's node, or all of it where it tells none.

    RabbitMQ writes `amq.rabbitmq.reply-to.<base64 of a process id>.<key>`. Where it is written in
    another way, every address is a family of its own, which costs it no more than its place.
    """
    process = address.split(".")[3] if address.count(".") > 3 else address
    try:
        name = b64decode(process, validate=True)[:-PROCESS_NUMBERS]
    except ValueError:
        name = b""
    return name or address.encode()
