"""Writes snapshots of long streams, beside the batches and never in their way."""

import asyncio
from dataclasses import replace
from typing import Final

import asyncpg
import structlog

from command_service.domain.decisions import Stream
from command_service.domain.snapshot import is_due, take
from command_service.store.event_store import EventStore

MOST_WAITING: Final = 100

log = structlog.get_logger()


class SnapshotWriter:
    """Takes states that are in the log, and writes those worth a snapshot, one at a time."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._waiting: asyncio.Queue[tuple[str, Stream]] = asyncio.Queue(MOST_WAITING)

    def offer(self, patient_id: str, stream: Stream) -> Stream:
        """Return the stream, with the snapshot that it will have if one is due.

        Where too many wait already, the stream is offered again with its next command.
        """
        if not is_due(stream) or self._waiting.full():
            return stream
        self._waiting.put_nowait((patient_id, stream))
        return replace(stream, snapshot_version=stream.version)

    async def run(self) -> None:
        """Write until cancelled; a snapshot that fails is missed by nobody."""
        while True:
            patient_id, stream = await self._waiting.get()
            try:
                snapshot = await asyncio.to_thread(take, patient_id, stream)  # it may be large
                await self._store.write_snapshot(snapshot)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                log.warning("snapshot.not_written", reason=type(error).__name__)
