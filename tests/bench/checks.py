"""How fast questions are answered: one, five hundred, whose patients, and after a revoke."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.bench.bench import Bench, Figure, Goal, Section, expect, percentile
from tests.bench.grants import Grant, make_grants
from tests.bench.old_consents import DOCTORS, make_consents
from tests.bench.questions import Times, encoded, keep_asking
from tests.bench.revokes import until_no
from tests.bench.stage import open_stage
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually

MANY = 100
"""Questions in flight."""
IN_A_MESSAGE = 500
BODIES = 20
"""Messages of many questions that are made beforehand and sent in turns."""
REVOKES_PER_S = 100
MS = 1000

HOW = (
    (
        "{consents:,} patients in the read model, each with one consent to one of 100 doctors."
        " HasConsent, about one of them after the other, from one process on the same machine that"
        " keeps so many questions in flight; for {check_s:g} s, {runs} times. Limit: a bare process"
        " that consumes the same messages from the same queue and answers each with the same bytes,"
        " in turns with the worker."
    ),
    (
        "CheckConsents: 500 questions in a message, each about another patient, answered with what"
        " each yes stands on; one worker. The rate is with two messages in flight, the latency with"
        " one. ListPatients: pages of 500 of a doctor who may see {consents:,} / 100 patients."
    ),
    (
        "Beside histories: the latency of HasConsent, one in flight, while as many ConsentHistory"
        " as 50 in flight make keep the same worker busy; and without them."
    ),
    (
        "Revoked: grants of new patients are revoked at 100/s, by the clock; from the broker's"
        " confirm of the revoke on, HasConsent is asked again and again. The figure is the time"
        " until the first no is there."
    ),
)


@dataclass
class Measured:
    """What the runs came to."""

    echoed: list[Times] = field(default_factory=list)
    checked: list[Times] = field(default_factory=list)
    echoed_alone: list[Times] = field(default_factory=list)
    checked_alone: list[Times] = field(default_factory=list)
    many: list[Times] = field(default_factory=list)
    many_alone: list[Times] = field(default_factory=list)
    pages: list[Times] = field(default_factory=list)
    beside: list[Times] = field(default_factory=list)
    until_no: list[list[float]] = field(default_factory=list)
    """Seconds from the confirm of each revoke to the first no."""


def measure(bench: Bench) -> Section:
    """Ask a worker and a bare echo in turns, then revoke and ask."""
    sizes, measured = bench.sizes, Measured()
    with open_stage(bench, "checks") as deployment:
        with bench.steps.step(f"checks: a read model of {sizes.consents:,} consents"):
            asyncio.run(make_consents(deployment.read_model_url, sizes.consents))
        for number in range(1, sizes.runs + 1):
            with bench.steps.step(f"checks: run {number} of {sizes.runs}"):
                _ask_echo(bench, deployment, measured)
                _ask_worker(bench, deployment, measured)
        with bench.steps.step("checks: from a revoke to a no"):
            deployment.start_both()
            for grants in _loads(sizes.runs, sizes.check_s):
                measured.until_no.append(asyncio.run(until_no(deployment, grants, REVOKES_PER_S)))
    how = [line.format(**vars(sizes)) for line in HOW]
    return Section("Questions", how, list(_figures(measured)))


def _ask_echo(bench: Bench, deployment: Deployment, measured: Measured) -> None:
    ask = _Asking(bench, deployment)
    program = ("-m", "tests.bench.bare", "echo")
    worker = deployment.start("projection_service", program=program, PYTHONUNBUFFERED="1")
    asyncio.run(eventually(lambda: _says_ready(worker), within=30))
    try:
        measured.echoed.append(ask.check(MANY))
        measured.echoed_alone.append(ask.check(1))
    finally:
        worker.kill()


async def _says_ready(worker: Worker) -> bool:
    return "ready" in worker.log


def _ask_worker(bench: Bench, deployment: Deployment, measured: Measured) -> None:
    ask = _Asking(bench, deployment)
    worker = deployment.start("projection_service")
    worker.wait_ready()
    measured.checked.append(ask.check(MANY))
    measured.checked_alone.append(ask.check(1))
    measured.many.append(ask.many(2))
    measured.many_alone.append(ask.many(1))
    measured.pages.append(ask.pages())
    with ask.flood():
        measured.beside.append(ask.check(1))
    worker.stop()


class _Asking:
    """Questions about the consents that were made."""

    def __init__(self, bench: Bench, deployment: Deployment) -> None:
        self._url = deployment.rabbitmq_url
        self._deployment = deployment
        self._consents = bench.sizes.consents
        self._seconds = bench.sizes.check_s
        self._bodies = [self._many_body(number) for number in range(BODIES)]

    def check(self, in_flight: int) -> Times:
        """Ask one question in a message."""
        times = keep_asking(self._url, "HasConsent", self._body, in_flight, self._seconds)
        expect(json.loads(times.last).get("has_consent"), f"a consent is not held: {times.last!r}")
        return times

    def many(self, in_flight: int) -> Times:
        """Ask five hundred questions in a message."""
        bodies = self._bodies
        times = keep_asking(
            self._url, "CheckConsents", lambda n: bodies[n % BODIES], in_flight, self._seconds
        )
        answers = json.loads(times.last).get("answers", [])
        right = len(answers) == IN_A_MESSAGE and all(one["basis"] for one in answers)
        expect(right, f"not every consent is held, or named: {times.last[:300]!r}")
        return times

    def pages(self) -> Times:
        """Ask for the first page of every doctor's patients in turns."""
        times = keep_asking(
            self._url,
            "ListPatients",
            lambda n: encoded(entity_name="doctor", entity_id=f"doctor-{n % DOCTORS}"),
            1,
            self._seconds,
        )
        expect(json.loads(times.last)["patients"], f"no patients: {times.last[:300]!r}")
        return times

    @contextmanager
    def flood(self) -> Iterator[None]:
        """Keep the worker busy with histories, from another process."""
        program = ("-m", "tests.bench.flood", str(self._seconds + 2))
        process = self._deployment.start("projection_service", program=program)
        try:
            asyncio.run(eventually(lambda: _says_ready(process), within=30))
            yield
        finally:
            process.kill()

    def _about(self, number: int) -> tuple[str, str]:
        patient = number * 7_919 % self._consents + 1
        return f"old-{patient}", f"doctor-{patient % DOCTORS}"

    def _body(self, number: int) -> bytes:
        patient, doctor = self._about(number)
        return encoded(
            patient_id=patient, entity_name="doctor", entity_id=doctor, permission="exams"
        )

    def _many_body(self, number: int) -> bytes:
        first = number * IN_A_MESSAGE
        return encoded(questions=[self._question(n) for n in range(first, first + IN_A_MESSAGE)])

    def _question(self, number: int) -> dict[str, Any]:
        patient, doctor = self._about(number)
        actor = {"entity_name": "doctor", "entity_id": doctor}
        return {"patient_id": patient, "actors": [actor], "permission": "exams"}


def _loads(runs: int, seconds: float) -> Iterator[list[Grant]]:
    count = round(REVOKES_PER_S * seconds)
    grants = make_grants(count * runs, 1)
    for number in range(runs):
        yield grants[number * count : (number + 1) * count]


def _figures(measured: Measured) -> Iterator[Figure]:
    yield Figure(
        f"HasConsent, {MANY} in flight",
        "answers/s",
        [times.per_second for times in measured.checked],
        [times.per_second for times in measured.echoed],
        Goal(at_least=0.85),
    )
    yield Figure(
        "HasConsent, 1 in flight, p50",
        "ms",
        _percentiles(measured.checked_alone, 50),
        _percentiles(measured.echoed_alone, 50),
        Goal(at_most=1.6),
    )
    yield Figure("HasConsent, 1 in flight, p99", "ms", _percentiles(measured.checked_alone, 99))
    yield Figure("HasConsent beside histories, p99", "ms", _percentiles(measured.beside, 99))
    yield Figure(
        "CheckConsents of 500",
        "answers/s",
        [times.per_second * IN_A_MESSAGE for times in measured.many],
        goal=Goal(no_less_than=50_000),
    )
    for percent, goal in ((50, Goal(no_more_than=15)), (99, None)):
        values = _percentiles(measured.many_alone, percent)
        yield Figure(f"CheckConsents of 500, 1 in flight, p{percent}", "ms", values, goal=goal)
    for percent, goal in ((50, Goal(no_more_than=10)), (99, None)):
        values = _percentiles(measured.pages, percent)
        yield Figure(f"ListPatients, a page of 500, p{percent}", "ms", values, goal=goal)
    for percent in (50, 99):
        values = [MS * percentile(run, percent) for run in measured.until_no]
        yield Figure(f"revoke confirmed → no by HasConsent, p{percent}", "ms", values)


def _percentiles(runs: Sequence[Times], percent: float) -> list[float]:
    return [MS * percentile(times.latencies, percent) for times in runs]
