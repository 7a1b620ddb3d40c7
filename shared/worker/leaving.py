"""Leaves the process without tidying up: what was in hand is delivered again, and decided once."""

import asyncio
import os
from typing import Final, NoReturn

import structlog

from shared.telemetry.standard_streams import last_words

HURRIED: Final = 3
"""Exit code of a worker that left before it was drained, or because it could not end a session."""

log = structlog.get_logger()


def leave_at_once(why: str) -> NoReturn:
    """End the process now, whatever still runs in it; that is told by the names of its tasks."""
    tasks = sorted(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
    log.warning("worker.left_at_once", reason=why, tasks=tasks)
    last_words()
    os._exit(HURRIED)
