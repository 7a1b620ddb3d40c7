"""A lag told from looks: 0 only where somebody has looked and found nothing waiting."""

import asyncio
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from shared.settings import WorkerSettings
from shared.telemetry.lag import FRESH_S, Lag
from shared.telemetry.readiness import Readiness
from shared.worker import observer as observing
from shared.worker.observer import Observer, Probe


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def of(lag: Lag, name: str, partition: int = 0) -> float | None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(lag)
    assert generate_latest(registry)
    return registry.get_sample_value(f"lag_{name}", {"partition": str(partition)})


def open_lag() -> tuple[Lag, Clock]:
    clock = Clock()
    lag = Lag("lag", "Events that wait", clock)
    lag.expect(range(2))
    return lag, clock


def open_observer() -> Observer:
    settings = WorkerSettings(rabbitmq_url="amqp://127.0.0.1:1")
    probe = Probe(look=lambda _: asyncio.sleep(0))
    nowhere = "postgresql://127.0.0.1:1"
    return Observer("command_service", nowhere, settings, Readiness(), probe)


async def test_an_observer_looks_again_when_a_library_has_cancelled_what_it_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    again = asyncio.Event()

    async def cancelled_at_first() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:  # as on a connection that was given up because the process stood still
            raise asyncio.CancelledError
        again.set()

    monkeypatch.setattr(observing, "LOOK_EVERY_S", 0.01)
    observer = open_observer()
    monkeypatch.setattr(observer, "_look_at_broker", cancelled_at_first)
    async with asyncio.timeout(60), observer.running():
        await again.wait()


async def test_an_observer_ends_though_a_library_swallows_its_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = asyncio.Event()

    async def deaf() -> None:
        began.set()
        with suppress(asyncio.CancelledError):  # as connecting does in a rare moment
            await asyncio.Event().wait()

    observer = open_observer()
    monkeypatch.setattr(observer, "_look_at_broker", deaf)
    async with asyncio.timeout(60), observer.running():
        await began.wait()
    assert {one.get_name() for one in asyncio.all_tasks()} == {asyncio.current_task().get_name()}  # type: ignore[union-attr]


def test_before_the_first_look_it_grows() -> None:
    lag, clock = open_lag()
    clock.now += 7
    assert (of(lag, "events"), of(lag, "seconds")) == (0, 7)


def test_it_is_zero_while_a_fresh_look_found_nothing_waiting() -> None:
    lag, clock = open_lag()
    lag.see(0, 0, None, clock.now)
    clock.now += FRESH_S
    assert (of(lag, "events"), of(lag, "seconds")) == (0, 0)


def test_when_nobody_can_look_any_more_it_grows_from_the_last_look() -> None:
    lag, clock = open_lag()
    lag.see(0, 0, None, clock.now)
    clock.now += FRESH_S + 1
    assert of(lag, "seconds") == FRESH_S + 1


def test_what_waits_is_counted_and_its_oldest_ages_between_the_looks() -> None:
    lag, clock = open_lag()
    lag.see(0, 3, 4.0, clock.now)
    clock.now += 2
    assert (of(lag, "events"), of(lag, "seconds")) == (3, 6)
    assert (of(lag, "events", partition=1), of(lag, "seconds", partition=1)) == (0, 2)


def test_an_age_that_nobody_knows_goes_on_from_what_was_known() -> None:
    lag, clock = open_lag()
    lag.see(0, 3, 4.0, clock.now)
    clock.now += 2
    lag.see(0, 2, None, clock.now)
    assert (of(lag, "events"), of(lag, "seconds")) == (2, 6)


def test_a_clock_that_runs_behind_the_logs_makes_no_negative_lag() -> None:
    lag, clock = open_lag()
    lag.see(0, 1, -5.0, clock.now)
    assert of(lag, "seconds") == 0
