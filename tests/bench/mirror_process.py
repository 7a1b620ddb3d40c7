"""A process that keeps a mirror and asks it at random: prints its figures as JSON.

`python -m tests.bench.mirror_process URL FILE PARTITIONS PATIENTS CHECKS`; with CHECKS 0 it only
keeps the mirror, until it is ended.
"""

import json
import random
import sys
from time import perf_counter, perf_counter_ns, sleep, time

import psutil  # type: ignore[import-untyped, unused-ignore]
import structlog

from shared.client import ConsentMirror, Stale
from tests.bench.bench import percentile
from tests.bench.mirror_file import grantee_of, patient_id

LOOK_EVERY_S = 0.001


def main() -> None:
    """Begin, say how long that took, and ask."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    url, path, partitions, patients, checks = sys.argv[1:]
    with ConsentMirror(url, path, partitions=int(partitions)) as mirror:
        while not _knows_all(mirror):
            sleep(LOOK_EVERY_S)
        started = time() - psutil.Process().create_time()
        print(json.dumps({"started_s": started}), flush=True)
        if not int(checks):
            sys.stdin.read()
            return
        print(json.dumps(_ask(mirror, int(patients), int(checks))), flush=True)


def _knows_all(mirror: ConsentMirror) -> bool:
    try:
        return max(mirror.as_of().values()) < float("inf")
    except Stale:
        return False


def _ask(mirror: ConsentMirror, patients: int, checks: int) -> dict[str, float]:
    """Ask about patients at random, each question timed; then as many without a clock."""
    chance = random.Random(1)  # noqa: S311
    numbers = [chance.randrange(patients) for _ in range(checks)]
    asked = [(patient_id(number), "doctor", grantee_of(number), "exams") for number in numbers]
    times = []
    for question in asked:
        began = perf_counter_ns()
        held = mirror.has_consent(*question)  # type: ignore[arg-type]
        times.append((perf_counter_ns() - began) / 1000)
        assert held, question
    began_at = perf_counter()
    for question in asked:
        mirror.has_consent(*question)  # type: ignore[arg-type]
    per_s = checks / (perf_counter() - began_at)
    memory = psutil.Process().memory_info().rss / 2**20
    return {
        "p50_us": percentile(times, 50),
        "p99_us": percentile(times, 99),
        "per_s": per_s,
        "memory_mib": memory,
    }


if __name__ == "__main__":
    main()
