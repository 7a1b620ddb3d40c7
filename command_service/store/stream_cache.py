"""The states of recent patients, kept in memory."""

from collections import OrderedDict
from typing import Final

from command_service.domain.decisions import Stream

MOST_STREAMS: Final = 20_000


class StreamCache:
    """Bounded: the least recently used go first. True only while their partitions are owned."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most = most
        self._streams: OrderedDict[str, tuple[int, Stream]] = OrderedDict()

    def get(self, patient_id: str) -> Stream | None:
        """Return a patient's state, if it is known."""
        known = self._streams.get(patient_id)
        if known is None:
            return None
        self._streams.move_to_end(patient_id)
        return known[1]

    def put(self, partition: int, patient_id: str, stream: Stream) -> None:
        """Keep a patient's state."""
        self._streams[patient_id] = (partition, stream)
        self._streams.move_to_end(patient_id)
        while len(self._streams) > self._most:
            self._streams.popitem(last=False)

    def forget(self, partition: int) -> None:
        """Forget the patients of a partition, since others may write to it now."""
        for patient_id in [key for key, known in self._streams.items() if known[0] == partition]:
            del self._streams[patient_id]

    def clear(self) -> None:
        """Forget everything."""
        self._streams.clear()
