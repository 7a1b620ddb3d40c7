"""Where the logs were known to end, and when: so a mirror knows as of when it has all. Pure."""

from collections.abc import Mapping

from shared.client.mirror.moments import Moment


class Heads:
    """What the logs said of their ends that the mirror has not reached yet."""

    def __init__(self) -> None:
        self._asked: dict[int, list[tuple[int, Moment]]] = {}
        """By partition, the oldest and the newest of them, and when each was asked for."""

    def note(self, partition: int, head: int, asked_at: Moment) -> None:
        """Note where a log ends.

        The oldest stays beside it: who is always a little behind the newest reaches that one.
        """
        self._asked[partition] = [*self._asked.get(partition, ())[:1], (head, asked_at)]

    def take_reached(self, positions: Mapping[int, int]) -> dict[int, Moment]:
        """Take out what is reached; return as of when all of these partitions is known."""
        complete: dict[int, Moment] = {}
        for number, position in positions.items():
            asked = self._asked.get(number, [])
            for head, moment in asked:
                if head <= position:
                    complete[number] = moment
            self._asked[number] = [(head, moment) for head, moment in asked if head > position]
        return complete
