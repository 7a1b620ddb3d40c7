"""Lines of batches: each has its own while they are few, and none is left untold."""

import asyncio
from contextlib import suppress

from structlog.testing import capture_logs

from shared.telemetry.batch_lines import MOST_IN_A_SECOND, BatchLines, keep_telling


def test_batches_have_a_line_each_while_they_are_few_and_the_rest_of_a_second_has_one() -> None:
    lines = BatchLines("batch.appended")
    with capture_logs() as told:
        for number in range(MOST_IN_A_SECOND + 30):
            lines.note({number % 3}, 0.002, deliveries=2, events=number % 2)
        assert [one["batches"] for one in told] == [1] * MOST_IN_A_SECOND
        lines.begin_second()
        lines.begin_second()
    assert len(told) == MOST_IN_A_SECOND + 1
    assert told[-1] == {
        "event": "batch.appended",
        "log_level": "info",
        "batches": 30,
        "partitions": [0, 1, 2],
        "deliveries": 60,
        "events": 15,
        "milliseconds": 60.0,
    }
    with capture_logs() as told:
        lines.note({7}, 0.001, deliveries=1, events=0)
    assert [(one["partitions"], one["events"]) for one in told] == [([7], 0)], "a new second"


async def test_what_was_not_told_yet_is_told_at_the_end() -> None:
    lines = BatchLines("batch.published")
    telling = asyncio.create_task(keep_telling(lines))
    await asyncio.sleep(0)
    with capture_logs() as told:
        for _ in range(MOST_IN_A_SECOND + 5):
            lines.note({0}, 0.0, events=1)
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling
    assert sum(one["events"] for one in told) == MOST_IN_A_SECOND + 5
