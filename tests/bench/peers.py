"""The same work by a peer, in turns with ours: pyeventsourcing, from the extra `peers`."""

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

from tests.bench import rounds
from tests.bench.bench import Bench, Figure, Goal, Section, expect
from tests.bench.looking import value
from tests.bench.stage import open_stage

TITLE = "Peers"
HOW = (
    (
        "{grants:,} grants for {patients:,} patients, all different, until the read model has all;"
        " PostgreSQL with the same settings, two databases. Ours: one worker of each kind, from"
        " full queues, broker included. Limit: pyeventsourcing {version}, without a broker: called"
        " in process by four threads, patients kept in its cache; a projection in a process of its"
        " own. In turns, {runs} times."
    ),
)
MISSING = "Not measured: pyeventsourcing is not installed; pip install 'consent[peers]'."
VISIBLE = "SELECT count(*) FROM peer_consents"


def measure(bench: Bench) -> Section:
    """Run ours and theirs in turns."""
    if find_spec("eventsourcing") is None:
        return Section(TITLE, [MISSING])
    ours, theirs = [], []
    runs = bench.sizes.runs
    for number in range(1, runs + 1):
        title = f"peers, round {number} of {runs}"
        ours.append(rounds.end_to_end(bench, title, 1).commands)
        with bench.steps.step(f"{title}: pyeventsourcing"):
            theirs.append(_pyeventsourcing(bench))
    return Section(TITLE, _how(bench), _figures(ours, theirs))


def _how(bench: Bench) -> list[str]:
    sizes = bench.sizes
    words = {**vars(sizes), "grants": sizes.grants, "version": version("eventsourcing")}
    return [line.format(**words) for line in HOW]


def _figures(ours: Sequence[float], theirs: Sequence[float]) -> list[Figure]:
    return [
        Figure("ours, end to end", "commands/s", ours, theirs, Goal(at_least=6)),
        Figure("pyeventsourcing", "commands/s", theirs),
    ]


def _pyeventsourcing(bench: Bench) -> float:
    """Return its commands per second; all of them must be in its read model."""
    sizes = bench.sizes
    with open_stage(bench, "peer") as deployment:
        each = sizes.grants_per_patient
        done = deployment.run("tests.bench.peer", str(sizes.patients), str(each))
        expect(done.returncode == 0, f"the peer: {done.stderr[-2000:]}")
        rows = asyncio.run(value(deployment.read_model_url, VISIBLE))
        expect(rows == sizes.grants, f"the peer's read model has {rows:,} of {sizes.grants:,}")
        return sizes.grants / float(done.stdout)
