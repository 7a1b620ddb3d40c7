"""Which slice of all patients a patient belongs to."""

from dataclasses import dataclass
from zlib import crc32


def partition_of(patient_id: str, partitions: int) -> int:
    """Return the partition of a patient, from 0 to `partitions` - 1.

    The CRC-32 of zlib and PNG over the UTF-8 bytes, modulo the number of partitions:
    every producer computes it, in whatever language.
    """
    return crc32(patient_id.encode()) % partitions


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a partition, since one taking-over."""

    partition: int
    epoch: int
