"""Shows a round to people: its counts, what was found, and the story of one patient."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import Finding
from tests.chaos.evidence import Evidence
from tests.chaos.patients import END_CAME, end_of
from tests.chaos.round import Result

MOST_FINDINGS = 20
MOST_LINES = 120
FAULT_NAMES = {
    "kill": "workers killed",
    "freeze": "workers frozen",
    "stop": "workers stopped",
    "hurried": "of them, left in a hurry",
    "broker": "broker restarts",
    "database": "database restarts",
    "terminate": "database connections ended",
    "cut": "wires cut",
    "silence": "wires silenced",
    "zombie": "workers whose writes came late",
    "delay": "wires delayed",
    "trickle": "wires trickling",
    "stall": "databases fallen silent for long",
    "trap": "full queues among the subscribers",
    "block": "alarms of the broker",
    "giant": "giant messages",
    "forge": "times of forged addresses",
    "left out": "faults left out, since they waited too long",
}


def counts(result: Result) -> dict[str, int]:
    """Count what a round was made of."""
    evidence, commands = result.evidence, result.evidence.commands
    sends = sum(len(one.sent) for one in commands)
    copies = Counter(one.body["id"] for one in evidence.received)
    waits = [one.seconds for one in evidence.takeovers if one.seconds is not None]
    late = [
        (row.recorded_at - end).total_seconds() * 1000
        for row in evidence.log
        if row.type == END_CAME and (end := end_of(row)) is not None
    ]
    return {
        "commands sent": sends,
        "distinct command ids": len({one.id for one in commands}),
        "repeats": sends - len(commands),
        "patients": len({one.patient_id for one in commands}),
        "outcomes accepted": sum(one.error is None for one in evidence.receipts),
        "outcomes rejected": sum(one.error is not None for one in evidence.receipts),
        "events": len(evidence.log),
        "received by the subscriber": len(evidence.received),
        "repeats among them": copies.total() - len(copies),
        "ends told of": len(late),
        "of them, milliseconds after the end, half of them": round(median(late)) if late else 0,
        "and at most": round(max(late, default=0)),
        "answers whether a consent is in force": len(evidence.held),
        "replies": len(evidence.replies),
        "asked again for a reply": result.asked_again,
        "senders' connections broken": result.reconnects,
        "most copies of one event": max(copies.values(), default=0),
        "commands beside forged addresses": sum(one.asked for one in evidence.forgeries),
        "of them, not answered": sum(one.unanswered for one in evidence.forgeries),
        "giant messages refused": sum(bool(one.answers) for one in evidence.giants),
        "partitions taken from silent workers": len(evidence.takeovers),
        "of them, seconds at most": round(max(waits, default=0)),
        "megabytes of a worker, at most": round(max(evidence.largest_mb.values(), default=0)),
        "workers that left by themselves": sum(slot.left for slot in result.faults.slots),
        **{name: result.faults.counts[kind] for kind, name in FAULT_NAMES.items()},
    }


def show(result: Result, findings: Sequence[Finding]) -> None:
    """Print the counts, and where something was found, what and where."""
    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    table = Table(title=f"Chaos, seed {result.settings.seed}, {result.settings.seconds:.0f} s")
    table.add_column("what")
    table.add_column("how many", justify="right")
    for name, number in counts(result).items():
        table.add_row(name, f"{number:,}")
    console.print(table)
    lines = [*result.problems, *(_line(one) for one in findings)]
    if not lines:
        console.print("Nothing lost, nothing doubled, nothing out of order.", style="green")
        return
    console.print(f"{len(lines)} findings with seed {result.settings.seed}:", style="bold red")
    for line in lines[:MOST_FINDINGS]:
        console.print(f"• {line}", markup=False, soft_wrap=True)
    told = [one for one in findings if one.patient_id]
    if told:
        earliest = min(told, key=lambda one: one.at.timestamp() if one.at else float("inf"))
        for line in story(result, earliest):
            console.print(line, markup=False, soft_wrap=True)


def _line(finding: Finding) -> str:
    return f"{finding.patient_id}: {finding.what}" if finding.patient_id else finding.what


def story(result: Result, finding: Finding) -> Iterator[str]:
    """Tell what is known of the patient concerned, and which faults there were at that time."""
    patient_id = finding.patient_id or ""
    yield f"The story of {patient_id}:"
    moments = sorted(_moments(result, patient_id))
    middle = sum(at <= f"{finding.at:%H:%M:%S.%f}" for at, _ in moments) if finding.at else 0
    first = max(0, middle - MOST_LINES // 3)
    yield f"  (from moment {first} of {len(moments)})"
    yield from (f"  {at} {what}" for at, what in moments[first : first + MOST_LINES])
    evidence = result.evidence
    for row in sorted(one for one in evidence.consents if one.patient_id == patient_id):
        yield f"  read model: {row}"
    yield f"  read model: version {evidence.patient_versions.get(patient_id)}"
    yield f"  received: {_received(evidence, patient_id)}"


def _received(evidence: Evidence, patient_id: str) -> str:
    positions = (
        message.body["position"]
        for message in evidence.received
        if message.body["subject"] == patient_id
    )
    return "positions " + ", ".join(map(str, positions))


def _moments(result: Result, patient_id: str) -> Iterator[tuple[str, str]]:
    evidence = result.evidence
    yield from _of_commands(evidence, patient_id)
    for row in evidence.log:
        if row.stream_id == patient_id:
            what = f"{row.type} {row.data}, version {row.stream_version}, {row.event_id}"
            yield (
                f"{row.recorded_at:%H:%M:%S.%f}",
                f"log {row.partition}/{row.position}: {what}, caused by {row.causation_id}",
            )
    for at, fault in result.happened:
        yield f"{at:%H:%M:%S.%f}", f"fault: {fault}"


def _of_commands(evidence: Evidence, patient_id: str) -> Iterator[tuple[str, str]]:
    commands = {one.id: one for one in evidence.commands if one.patient_id == patient_id}
    for command in commands.values():
        for at, note in command.sent:
            until = "" if command.expires_at is None else f" until {command.expires_at}"
            what = f"{command.type} {command.entity} {command.entity_id} {command.target}{until}"
            yield f"{at:%H:%M:%S.%f}", f"sent ({note}): {command.id} {what}"
    for reply in evidence.replies:
        if reply.command_id in commands:
            yield f"{reply.at:%H:%M:%S.%f}", f"replied to {reply.command_id}: {reply.content}"
    for receipt in evidence.receipts:
        if receipt.command_id in commands:
            yield f"{receipt.recorded_at:%H:%M:%S.%f}", f"receipt: {receipt}"
