"""When the system lets this process run."""

import os
from contextlib import suppress


def let_others_finish() -> None:
    """Have whoever is at work finish its turn before this process begins its own.

    By itself Linux lets what is woken interrupt what runs. On a machine whose cores are busy, each
    message from the broker interrupted a database in the middle of a statement, or the broker.
    What is done and what it costs is the same; what waits meanwhile becomes one batch.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
