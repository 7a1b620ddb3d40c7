"""Forgets the receipts of long ago, a little at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from shared.postgres.connection import Connection
from shared.postgres.retention import purging
from shared.postgres.statements import statement

ROWS_AT_ONCE: Final = 1_000
"""How many receipts are deleted in one transaction."""

_COUNT_RECEIPTS = statement("command_service", "count_receipts")
_PURGE_RECEIPTS = statement("command_service", "purge_receipts")


@dataclass(slots=True)
class PurgedReceipts:
    """How many receipts from before a moment there were, and how many of them are gone."""

    before: datetime
    found: int
    deleted: int = 0


async def purge_receipts(
    connection: Connection,
    older_than: timedelta,
    *,
    dry_run: bool = False,
    tell: Callable[[PurgedReceipts], None] = lambda _: None,
) -> PurgedReceipts:
    """Delete the receipts that are so old, the oldest first; `tell` hears how far it is.

    Each part is a transaction of its own: ended anywhere, it may be run again.
    Raises SettingsError for an age below a day, or a role that may not delete.
    """
    with purging("receipts", older_than):
        (counted,) = await connection.fetch(_COUNT_RECEIPTS, older_than)
        purged = PurgedReceipts(*counted)
        if not dry_run:
            await _delete(connection, purged, tell)
    return purged


async def _delete(
    connection: Connection, purged: PurgedReceipts, tell: Callable[[PurgedReceipts], None]
) -> None:
    since = datetime.min.replace(tzinfo=UTC)
    while rows := await connection.fetch(_PURGE_RECEIPTS, since, purged.before, ROWS_AT_ONCE):
        since = max(row["recorded_at"] for row in rows)
        purged.deleted += len(rows)
        tell(purged)
