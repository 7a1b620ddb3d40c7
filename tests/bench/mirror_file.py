"""A mirror's file that holds many patients already."""

from contextlib import closing
from pathlib import Path

from shared.client.mirror.database import open_to_write, sql, transaction
from shared.client.mirror.ends import NO_END

DOCTORS = 1_000


def patient_id(number: int) -> str:
    """Name a patient of the file."""
    return f"mirrored-{number:07}"


def grantee_of(number: int) -> str:
    """Name the doctor who may see a patient's exams and conditions."""
    return f"doctor-{number % DOCTORS}"


def fill(path: Path, partitions: int, patients: int) -> None:
    """Add patients, beside what the file has from its log."""
    rows = (
        (patient_id(number), "doctor", grantee_of(number), NO_END, None, NO_END, None)
        for number in range(patients)
    )
    with closing(open_to_write(path, partitions)) as connection, transaction(connection):
        connection.executemany(sql("write_ends"), rows)
