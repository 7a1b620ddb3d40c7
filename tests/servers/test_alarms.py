"""The sandbox's broker can be told to run out of memory or disk, as the round of chaos has it."""

import pytest

from tests.chaos.faults import ALARMS, ALARMS_OVER
from tests.sandbox import BrokerRefused, Sandbox
from tests.support.eventually import eventually


@pytest.mark.parametrize("resource", ALARMS)
async def test_an_alarm_begins_and_ends_when_the_broker_is_told(
    sandbox: Sandbox, resource: str
) -> None:
    async def is_alarmed() -> bool:
        try:
            return bool(sandbox.broker.api("GET", "/health/checks/alarms")["status"] != "ok")
        except BrokerRefused as refused:
            return "alarm" in str(refused)

    async def is_over() -> bool:
        return not await is_alarmed()

    sandbox.broker.ctl(*ALARMS[resource])
    try:
        await eventually(is_alarmed)
    finally:
        sandbox.broker.ctl(*ALARMS_OVER[resource])
    await eventually(is_over)


def test_what_the_broker_does_not_understand_is_told(sandbox: Sandbox) -> None:
    with pytest.raises(BrokerRefused, match="argument"):
        sandbox.broker.ctl("set_disk_free_limit", "much")
