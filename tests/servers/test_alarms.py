"""The sandbox's broker can be told to run out of memory or disk, as the round of chaos has it."""

import pytest

from tests.chaos.faults import ALARMS, ALARMS_OVER
from tests.sandbox import BrokerRefused, Sandbox


@pytest.mark.parametrize("resource", ALARMS)
def test_an_alarm_begins_and_ends_when_the_broker_is_told(sandbox: Sandbox, resource: str) -> None:
    sandbox.broker.ctl(*ALARMS[resource])
    try:
        with pytest.raises(BrokerRefused, match="alarm"):
            sandbox.broker.api("GET", "/health/checks/alarms")
    finally:
        sandbox.broker.ctl(*ALARMS_OVER[resource])
    assert sandbox.broker.api("GET", "/health/checks/alarms")["status"] == "ok"


def test_what_the_broker_does_not_understand_is_told(sandbox: Sandbox) -> None:
    with pytest.raises(BrokerRefused, match="argument"):
        sandbox.broker.ctl("set_disk_free_limit", "much")
