"""How long the exchange is offered again what it refused, and when it is left alone with that.

It refuses what one of the queues bound to it refuses, and never tells whose. A queue whose leader
has just died refuses what comes over a new channel until it has the next, within half a second or
so; one whose leader is frozen says nothing for longer. A queue that is full refuses, too, and all
others wait meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from shared.rabbitmq.publishing import Why

ON_REFUSED: Final = (0.5, 1.0)
ON_UNANSWERED: Final = (1.0, 3.0)
"""Seconds before each offer."""
RESTS_AFTER_VAIN_S: Final = 60.0
"""Where it was in vain: that queue is full. Twice as long each time it is so again."""
LONGEST_REST_S: Final = 600.0


@dataclass(slots=True)
class Insistence:
    """On what was refused for one reason."""

    pauses_s: Sequence[float]
    rests_for: float
    """Times as long as it took, it is not done again where it helped, lest a queue that is full
    now and then slow down all others."""
    _due_at: float = 0.0
    _vain_rest_s: float = RESTS_AFTER_VAIN_S

    def is_due(self) -> bool:
        """Whether there was rest enough."""
        return monotonic() >= self._due_at

    def rest(self, began: float, *, in_vain: bool) -> None:
        """Leave it alone for a while, after insisting since then, by the monotonic clock."""
        now = monotonic()
        if in_vain:
            self._due_at = now + self._vain_rest_s
            self._vain_rest_s = min(2 * self._vain_rest_s, LONGEST_REST_S)
        else:
            self._due_at = now + self.rests_for * (now - began)
            self._vain_rest_s = RESTS_AFTER_VAIN_S


def insistences() -> dict[Why, Insistence]:
    """Begin with all reasons on which it is insisted; a queue that says nothing is not full."""
    return {
        Why.REFUSED: Insistence(ON_REFUSED, rests_for=9),
        Why.UNANSWERED: Insistence(ON_UNANSWERED, rests_for=0),
    }
