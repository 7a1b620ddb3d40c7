"""The same work by pyeventsourcing: `python -m tests.bench.peer PATIENTS EACH`.

An aggregate for each patient, kept in its cache; a projection in a process of its own writes each
consent with its tracking record in one transaction, as the library does. Commands are called in
process, in some threads, so that one prepares while another waits for the disk: there is no
broker. It prints the seconds from the first grant until the last is in the read model.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.sql import SQL, Identifier

from tests.bench.grants import Grant, make_grants

THREADS = 4
"""With more it is no faster: an append locks the table of all events."""
TABLE = "peer_consents"


class Patient(Aggregate):
    """Who grants."""

    class Begun(Aggregate.Created):
        """The first command came."""

        patient_id: str

    @event(Begun)
    def __init__(self, patient_id: str) -> None:
        self.patient_id = patient_id
        self.granted: set[tuple[str, str, str]] = set()

    @staticmethod
    def create_id(patient_id: str) -> UUID:
        """The same for the same patient."""
        return uuid5(NAMESPACE_URL, patient_id)

    def grant(self, entity: str, id_: str, target: str) -> None:
        """Refuse what is granted already."""
        if (entity, id_, target) in self.granted:
            raise ValueError("already granted")
        self.record_grant(self.patient_id, entity, id_, target)

    class Granted(Aggregate.Event):
        """A consent for one record type."""

        patient_id: str
        entity: str
        id_: str
        target: str

    @event(Granted)
    def record_grant(self, patient_id: str, entity: str, id_: str, target: str) -> None:
        """Keep it."""
        self.granted.add((entity, id_, target))


class Consents(Application[UUID]):
    """Takes the commands."""

    def grant(self, patient_id: str, entity: str, id_: str, target: str) -> None:
        """Decide, and append."""
        try:
            patient: Patient = self.repository.get(Patient.create_id(patient_id))
        except AggregateNotFoundError:
            patient = Patient(patient_id)
        patient.grant(entity, id_, target)
        self.save(patient)


class View(PostgresTrackingRecorder):
    """The read model."""

    def __init__(self, *arguments: Any, **others: Any) -> None:  # noqa: ANN401 - the library's
        super().__init__(*arguments, **others)
        table = Identifier(self.datastore.schema, TABLE)
        self.sql_create_statements.append(
            SQL(
                "CREATE TABLE IF NOT EXISTS {} (patient_id text, entity text, id text, target text,"
                " PRIMARY KEY (patient_id, entity, id, target))"
            ).format(table)
        )
        self._insert = SQL("INSERT INTO {} VALUES (%s, %s, %s, %s)").format(table)

    def add(self, granted: Patient.Granted, tracking: Tracking) -> None:
        """Write a consent, and that its event is applied."""
        row = (granted.patient_id, granted.entity, granted.id_, granted.target)
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute(self._insert, row, prepare=True)
            self._insert_tracking(cursor, tracking)


class Projector(Projection[View]):
    """Applies the events."""

    def process_event(self, domain_event: object, tracking: Tracking) -> None:
        """Apply one; what is no grant changes nothing."""
        if isinstance(domain_event, Patient.Granted):
            self.view.add(domain_event, tracking)


def settings() -> dict[str, str]:
    """Its settings: all that is safe and makes it faster."""
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "AGGREGATE_CACHE_MAXSIZE": "100000",
        "AGGREGATE_CACHE_FASTFORWARD": "n",  # nobody else writes, and a conflict would be noticed
        "POSTGRES_POOL_SIZE": str(THREADS),
        **_server("CONSENTS_POSTGRES", os.environ["EVENT_STORE_URL"]),
        **_server("PROJECTOR_POSTGRES", os.environ["READ_MODEL_URL"]),
    }


def _server(prefix: str, url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {
        f"{prefix}_DBNAME": parts.path.lstrip("/"),
        f"{prefix}_HOST": parts.hostname or "",
        f"{prefix}_PORT": str(parts.port),
        f"{prefix}_USER": parts.username or "",
        f"{prefix}_PASSWORD": parts.password or "none",
    }


def project(until: int, ready: Event, done: Event) -> None:
    """Apply so many events, in a process of its own."""
    with ProjectionRunner(
        application_class=Consents,
        projection_class=Projector,
        view_class=View,
        env=settings(),
    ) as runner:
        ready.set()
        runner.wait(until, timeout=600)
        done.set()


def grant_all(application: Consents, grants: Sequence[Grant]) -> None:
    """Send the grants of some patients."""
    for one in grants:
        application.grant(one.patient_id, "doctor", one.doctor_id, "exams")


def main(patients: int, each: int) -> None:
    """Grant, and wait until all is projected."""
    grants = make_grants(patients, each)
    application = Consents(env=settings())
    ready, done = get_context("spawn").Event(), get_context("spawn").Event()
    last = len(grants) + patients  # each patient's beginning is an event too
    projecting = get_context("spawn").Process(target=project, args=(last, ready, done))
    projecting.start()
    ready.wait(60)
    shares = [
        [one for n, one in enumerate(grants) if n % patients % THREADS == thread]
        for thread in range(THREADS)
    ]
    began = monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda share: grant_all(application, share), shares))
    done.wait(600)
    sys.stdout.write(f"{monotonic() - began}\n")
    projecting.join(60)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
