"""What `check` finds out about the log: whose it is, and whether it has what was taken from it."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import asyncpg

from shared.cli.check_results import Finding, Needs
from shared.errors import ConsentError
from shared.errors.connection import BROKER_ERRORS
from shared.event_log.set_back import SetBack
from shared.postgres.database import open_pool
from shared.rabbitmq.connection import connect

GIVE_UP_S = 30
REMEDY = (
    "bring the right log back, or take it as it is: `python -m command_service accept-log`, then "
    "`python -m projection_service rebuild`"
)


async def log_findings(needs: Needs) -> AsyncIterator[Finding]:
    """Have the service look itself; what keeps it from that was found already, and said."""
    try:
        pool = await open_pool(needs.database_url, name="check", size=1, package=needs.package)
    except (ConsentError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return
    name = f"{needs.package} check"
    try:
        async with (
            connect(needs.settings.rabbitmq_url, name=name) as broker,
            asyncio.timeout(GIVE_UP_S),
        ):
            async for finding in needs.look(pool, broker):
                yield finding
    except ConsentError as error:
        yield Finding("log", False, str(error))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, *BROKER_ERRORS) as error:
        yield Finding("log", False, f"not compared: {error or type(error).__name__}")
    finally:
        pool.terminate()


def set_back_finding(found: Iterable[SetBack], compared: str) -> Finding:
    """Judge what comparing with the log found."""
    complaints = [str(one) for one in found]
    if complaints:
        return Finding("log", False, f"{'; '.join(complaints)}: {REMEDY}")
    return Finding("log", True, compared)
