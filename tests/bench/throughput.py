"""How many waiting commands, or events, per second go through one worker, and through two."""

from collections.abc import Iterable, Sequence
from statistics import median

from tests.bench import rounds
from tests.bench.bench import Bench, Figure, Goal, Section
from tests.bench.cpu import NAMES, CpuReading, others_figure

HOW = (
    (
        "{grants:,} grants for {patients:,} patients, all different, wait in {partitions} quorum"
        " queues, the worker is ready and idle; the clock starts when the queues are opened to it."
        " Each figure is measured once in each of {runs} rounds, next to its limit; the ratio is"
        " the median over the rounds."
    ),
    (
        "Write path: until the last reply is in its queue (exclusive, classic; nobody consumes it"
        " meanwhile) and the last event in the projection's quorum queues, both looked up every"
        " 20 ms; the projection is not running. Limit: a bare process with the same queues,"
        " prefetch and sizes of messages does the three AMQP steps with nothing between."
    ),
    (
        "End to end: until the last reply, and the read model's checkpoints are at the end, looked"
        " up every 20 ms. Limit: the write path alone. Afterwards every reply, event and row is"
        " checked."
    ),
    (
        "Projection: the events of that write path wait in their queues, behind a gate likewise,"
        " a command worker has nothing to do. Limit: a bare process consumes and acknowledges as"
        " many messages of that size."
    ),
    (
        "Two of each kind: with two cores they share what one of each already uses up; the aim is"
        " that nothing is lost by it. Its limit is one of each, end to end."
    ),
    (
        "CPU: user and system time of each part with its children, from the opening of the queues"
        " to the end, per command. Idle: one worker that owns all partitions, over {idle_s:g} s;"
        " the operating system counts in hundredths of a second."
    ),
    (
        "Statements: counted by pg_stat_statements, each one round trip, those of leases, heads"
        " and cursors included. Waits for the disk: pg_stat_wal's syncs on that server during the"
        " run. RabbitMQ's own are not told per queue by it, and not counted."
    ),
)


def measure(bench: Bench) -> Section:
    """Run round after round; in each, everything that is compared."""
    bare, write, one, two = [], [], [], []
    runs = bench.sizes.runs
    for number in range(1, runs + 1):
        title = f"throughput, round {number} of {runs}"
        bare.append(rounds.bare(bench, title))
        write.append(rounds.write(bench, title))
        one.append(rounds.end_to_end(bench, title, 1))
        two.append(rounds.end_to_end(bench, title, 2))
    bench.found.end_to_end = median(run.commands for run in one)
    how = [line.format(**vars(bench.sizes), grants=bench.sizes.grants) for line in HOW]
    return Section(
        "Throughput",
        how,
        [
            *_rates(bare, write, one, two),
            *_work(write),
            *_idle(one),
            *_cpu("1 of each kind", one, bench.sizes.grants),
            *_cpu("2 of each kind", two, bench.sizes.grants),
        ],
    )


def _rates(
    bare: Sequence[rounds.Bare],
    write: Sequence[rounds.Write],
    one: Sequence[rounds.End],
    two: Sequence[rounds.End],
) -> list[Figure]:
    written = [run.commands for run in write]
    visible = [run.commands for run in one]
    return [
        Figure(
            "write path",
            "commands/s",
            written,
            [run.commands for run in bare],
            Goal(at_least=0.9),
        ),
        Figure("end to end", "commands/s", visible, written, Goal(at_least=0.85)),
        Figure(
            "projection",
            "events/s",
            [run.events_projected for run in write],
            [run.events_acknowledged for run in bare],
            Goal(at_least=0.6),
        ),
        Figure(
            "end to end, 2 of each kind",
            "commands/s",
            [run.commands for run in two],
            visible,
            Goal(at_least=1.0),
        ),
        Figure("end to end, until the last reply", "commands/s", [run.replied for run in one]),
        Figure("until the first reply is seen", "ms", [run.first_reply_s * 1000 for run in write]),
    ]


def _work(write: Sequence[rounds.Write]) -> list[Figure]:
    command = [run.command_work for run in write]
    projection = [run.projection_work for run in write]
    figures = []
    for name, work in (("command", command), ("projection", projection)):
        figures += [
            Figure(f"{name} batches of a run", "batches", [one.batches for one in work]),
            Figure(
                f"statements per {name} batch",
                "round trips",
                [one.statements_per_batch() for one in work],
            ),
            Figure(
                f"waits for the disk per {name} batch",
                "fsyncs",
                [value for one in work for value in one.fsyncs_per_batch()],
            ),
        ]
    return figures


def _idle(runs: Sequence[rounds.End]) -> list[Figure]:
    readings = [run.idle for run in runs if run.idle]
    return [
        Figure(
            f"idle CPU, {NAMES[part]}",
            "%",
            [100 * one.parts[part] / one.moment for one in readings if part in one.parts],
            goal=Goal(no_more_than=1.0),
        )
        for part in ("command_service", "projection_service")
    ]


def _cpu(name: str, runs: Sequence[rounds.End], commands: int) -> list[Figure]:
    readings = [run.cpu for run in runs]

    def per_command(seconds: Iterable[float]) -> list[float]:
        return [1000 * one / commands for one in seconds]

    whole = [sum(one.parts.values()) for one in readings if one.parts.keys() == NAMES.keys()]
    unit = "ms/command"
    return [
        Figure(f"CPU, {name}, all", unit, per_command(whole), goal=Goal(no_more_than=0.46)),
        *(
            Figure(f"CPU, {name}, {title}", unit, per_command(_part(readings, part)))
            for part, title in NAMES.items()
        ),
        Figure(
            f"CPU, {name}, the benchmark's looking",
            unit,
            per_command(one.benchmark for one in readings),
        ),
        others_figure(name, readings),
    ]


def _part(readings: Iterable[CpuReading], part: str) -> list[float]:
    return [one.parts[part] for one in readings if part in one.parts]
