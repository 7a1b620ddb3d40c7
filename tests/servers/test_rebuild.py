"""Rebuilding the read model while commands flow and queries are answered; and its audit."""

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest
from rich.console import Console

from projection_service.read_model import TABLES
from projection_service.rebuild import shadow
from projection_service.rebuild.progress import show_progress
from projection_service.rebuild.rebuild import Rebuilt, rebuild
from projection_service.settings import ProjectionSettings
from shared.errors import Unsure
from tests.chaos.links import Disorder, open_wires
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_least_privilege import with_login
from tests.support.amqp import Client, body_of, open_client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.facts import (
    TARGETS,
    fetch,
    flood,
    folded_log,
    log_size,
    projected,
    read_model,
    replies,
)
from tests.support.standing import standing_deployment

WITHIN_S: Final = 60.0
SHADOW: Final = "SELECT oid FROM pg_namespace WHERE nspname = 'consent_shadow'"


@pytest.fixture(scope="module")
def standing(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    """Give the whole module one deployment; every test leaves a right read model behind."""
    with standing_deployment(sandbox, "rebuild", migrated) as made:
        yield made


@pytest.fixture
async def client(standing: Deployment) -> AsyncIterator[Client]:
    async with open_client(standing.rabbitmq_url, PARTITIONS) as connected:
        yield connected


@pytest.fixture
async def connection(standing: Deployment) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    opened = await asyncpg.connect(standing.read_model_url)
    yield opened
    await opened.close()


@contextmanager
def begun(
    deployment: Deployment, *more: str, **environment: str
) -> "Iterator[subprocess.Popen[str]]":
    """Start a rebuild; it is killed where it has not ended."""
    process = deployment.begin("projection_service", "rebuild", *more, **environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait for the exit code, and what was written."""
    out, err = await asyncio.to_thread(process.communicate, timeout=WITHIN_S)
    return process.returncode, out, err


async def rebuilt(deployment: Deployment, *, dry_run: bool = False) -> Rebuilt:
    """Rebuild, in this process."""
    settings = ProjectionSettings(
        rabbitmq_url=deployment.rabbitmq_url,
        read_model_url=deployment.read_model_url,
        consent_partitions=deployment.partitions,
    )
    with show_progress(Console(file=StringIO())) as progress:
        return await rebuild(settings, progress, dry_run=dry_run)


@asynccontextmanager
async def long_query(deployment: Deployment) -> AsyncIterator[None]:
    """Use the read model, as a backup does: nobody can switch as long as this lasts."""
    connection = await asyncpg.connect(deployment.read_model_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM patients LIMIT 1")
            yield
    finally:
        await connection.close()


async def in_shadow(
    connection: "asyncpg.Connection[asyncpg.Record]", sql: str = "SELECT count(*) FROM {}.patients"
) -> int:
    """Ask the shadow; 0 where there is none."""
    try:
        return int(await connection.fetchval(sql.format("consent_shadow")) or 0)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return 0


async def everything(connection: "asyncpg.Connection[asyncpg.Record]") -> list[Any]:
    """Read the whole model, and which tables it is in."""
    tables = ("patients", "patient_consent", "parked_events", "checkpoints")
    rows = [await connection.fetch(f"SELECT * FROM {table} t ORDER BY t::text") for table in tables]  # noqa: S608
    return [rows, await connection.fetch("SELECT $1::regclass::oid", "patients")]


async def settled(deployment: Deployment) -> bool:
    """Whether everything in the log is projected."""
    return await projected(deployment) == await log_size(deployment)


class Patient:
    """One patient, whose commands and answers are known one by one."""

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.id = f"walker-{number}"
        self.granted: set[str] = set()
        self.version = 0
        self.answers = 0

    async def step(self, number: int) -> None:
        """Change one thing; the answer after it must show exactly that."""
        target = TARGETS[number % 3]
        type_ = "RevokeConsent" if target in self.granted else "GrantConsent"
        reply = await self.client.reply(
            await self.client.send(type_, body_of(type_, self.id, target)),
            within=WITHIN_S,
        )
        assert (reply["status"], reply["version"]) == ("accepted", self.version + 1)
        self.granted ^= {target}
        self.version += 1
        await self.look(self.version)

    async def look(self, min_version: int) -> None:
        """Ask until it is projected; what is answered must be right, and no query lost."""
        status = "error"
        while status == "error":
            asked = {"patient_id": self.id, "min_version": min_version}
            found = await self.client.reply(
                await self.client.send(
                    "ListConsents", asked, exchange="consent.queries", key="ListConsents"
                ),
                within=WITHIN_S,
            )
            status = found["status"]
            assert status == "ok" or found["error"] == "not_yet_projected", found
        assert found["version"] == self.version
        seen = [one["permissions"] for one in found["consents"]]
        assert seen == ([sorted(self.granted)] if self.granted else [])
        self.answers += 1


async def walk(patient: Patient, stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        await patient.step(number)
        await patient.look(0)
        number += 1


async def test_while_it_is_rebuilt_every_answer_is_right_and_every_command_accepted(
    standing: Deployment, client: Client
) -> None:
    await replies(client, await flood(client, patients=40))
    stop = asyncio.Event()
    patients = [Patient(client, number) for number in range(6)]
    walks = [asyncio.create_task(walk(patient, stop)) for patient in patients]
    with begun(standing, "--json") as process:
        code, out, err = await ended(process)
    assert code == 0, err
    done = json.loads(out)
    answered = [patient.answers for patient in patients]

    async def all_went_on() -> bool:
        """Each must also be answered out of the new tables."""
        assert not any(one.done() for one in walks), await asyncio.gather(*walks)
        return all(p.answers > before + 2 for p, before in zip(patients, answered, strict=True))

    await eventually(all_went_on, within=WITHIN_S)
    stop.set()
    await asyncio.gather(*walks)
    assert done["switched"]
    assert done["events"] >= 480
    assert all(answered)

    await eventually(lambda: settled(standing), within=WITHIN_S)
    assert await read_model(standing) == await folded_log(standing)
    assert not await fetch(standing.read_model_url, SHADOW)
    worker = standing.workers[1]
    assert "Traceback" not in worker.log
    assert worker.process.poll() is None


async def test_killed_at_any_point_it_leaves_the_old_one_as_it_was_and_runs_again(
    standing: Deployment, client: Client, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await replies(client, await flood(client, patients=10))
    await eventually(lambda: settled(standing), within=WITHIN_S)
    before = await everything(connection)
    all_events = await log_size(standing)
    filled = "SELECT coalesce(sum(position), 0) FROM {}.checkpoints"

    async def made() -> bool:
        return True

    async def some_filled() -> bool:
        return await in_shadow(connection) > 0

    async def all_filled() -> bool:
        return await in_shadow(connection, filled) == all_events

    async with long_query(standing):  # the last point before the switch lasts for ever
        for reached in (made, some_filled, all_filled):
            old = await connection.fetchval(SHADOW)
            with begun(standing) as process:
                await eventually(partial(_newly, connection, old, reached), within=WITHIN_S)
                process.send_signal(signal.SIGKILL)
            await eventually(partial(_nobody_rebuilds, connection), within=WITHIN_S)
            assert await everything(connection) == before
    done = await rebuilt(standing)
    assert (done.switched, done.events) == (True, all_events)
    rows, tables = await everything(connection)
    assert rows == before[0]
    assert tables != before[1]
    assert not await connection.fetchval(SHADOW)


async def _newly(
    connection: "asyncpg.Connection[asyncpg.Record]",
    old: int | None,
    reached: Callable[[], Awaitable[bool]],
) -> bool:
    """Whether another shadow than the one left behind has come so far."""
    return await connection.fetchval(SHADOW) not in {None, old} and await reached()


async def _nobody_rebuilds(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    """Whether the server has noticed that the one who was killed is gone."""
    sessions = """SELECT count(*) FROM pg_stat_activity
                   WHERE application_name = 'rebuild' AND datname = current_database()"""
    return bool(await connection.fetchval(sessions) == 0)


async def test_a_second_one_says_so_and_a_long_query_delays_the_switch_and_nobody_else(
    standing: Deployment, client: Client, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    accepted = await client.command("GrantConsent", f"p-{uuid4()}")
    asked = {"patient_id": accepted["patient_id"], "min_version": 1}
    with begun(standing, "--json") as first:
        async with long_query(standing):
            await eventually(lambda: in_shadow(connection), within=WITHIN_S)
            second = await asyncio.to_thread(standing.run, "projection_service", "rebuild")
            assert second.returncode == 3
            assert second.stderr == (
                "error: another rebuild of this read model is running: let it end, then try again\n"
            )
            assert (await client.query("ListConsents", **asked))["status"] == "ok"
            assert first.poll() is None
        code, out, _ = await ended(first)
    assert code == 0
    assert json.loads(out)["switched"]


async def test_it_goes_on_when_the_broker_cuts_its_connection(
    standing: Deployment,
    client: Client,
    sandbox: Sandbox,
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    await replies(client, await flood(client, patients=2))
    vhost = quote(standing.rabbitmq_url.rsplit("/", 1)[1], safe="")

    async def name_of_connection() -> str:
        for one in sandbox.broker.api("GET", f"/vhosts/{vhost}/connections"):
            if one.get("client_properties", {}).get("connection_name") == "rebuild":
                return str(one["name"])
        return ""

    with begun(standing, "--json") as process:
        async with long_query(standing):
            await eventually(lambda: in_shadow(connection), within=WITHIN_S)
            name = await eventually(name_of_connection, within=WITHIN_S)
            sandbox.broker.api("DELETE", f"/connections/{quote(name, safe='')}")
            await replies(client, await flood(client, patients=1, doctors=3))
        code, out, err = await ended(process)
    assert code == 0, err
    assert json.loads(out)["switched"]
    await eventually(lambda: settled(standing), within=WITHIN_S)
    assert await read_model(standing) == await folded_log(standing)


END_WHO_HOLDS_THE_LOCK = f"""
    SELECT pg_terminate_backend(pid) FROM pg_locks
     WHERE locktype = 'advisory' AND granted AND objid = {shadow.REBUILD_LOCK} AND database = (
           SELECT oid FROM pg_database WHERE datname = current_database())"""  # noqa: S608


@pytest.mark.parametrize("begin_with", ["the lock", "the shadow"])
async def test_without_the_connection_that_holds_its_lock_it_changes_nothing(
    standing: Deployment,
    client: Client,
    connection: "asyncpg.Connection[asyncpg.Record]",
    begin_with: str,
) -> None:
    await connection.execute("DROP SCHEMA IF EXISTS consent_shadow CASCADE")
    await client.command("GrantConsent", f"p-{uuid4()}")
    with begun(standing) as process:
        async with long_query(standing):
            before = await everything(connection)
            if begin_with == "the shadow":
                await eventually(lambda: in_shadow(connection), within=WITHIN_S)
            await eventually(
                lambda: connection.fetch(END_WHO_HOLDS_THE_LOCK), within=WITHIN_S, every=0.002
            )
            code, _, err = await ended(process)
    assert code == 3, err
    assert err.splitlines()[-1].startswith("error: the connection to the read model was lost")
    assert (await everything(connection))[1] == before[1]


@pytest.mark.parametrize("broker", ["that says good-bye", "that falls silent"])
async def test_whoever_does_not_hear_that_it_was_switched_does_not_say_that_nothing_has_changed(
    standing: Deployment,
    client: Client,
    connection: "asyncpg.Connection[asyncpg.Record]",
    monkeypatch: pytest.MonkeyPatch,
    broker: str,
) -> None:
    await client.command("GrantConsent", f"p-{uuid4()}")
    await eventually(lambda: settled(standing), within=WITHIN_S)
    before = await everything(connection)
    switch = shadow.Shadow.switch
    with open_wires() as wires:
        link, to_broker = wires.lay(standing.read_model_url), wires.lay(standing.rabbitmq_url)

        async def unheard(self: shadow.Shadow) -> None:
            await switch(self)
            link.disturb(Disorder("silence", ("down",)))
            if broker == "that falls silent":
                to_broker.disturb(Disorder("silence"))

        async def switched() -> bool:
            return bool((await everything(connection))[1] != before[1])

        monkeypatch.setattr(shadow.Shadow, "switch", unheard)
        monkeypatch.setattr("projection_service.rebuild.rebuild.PING_S", 0.01)
        wired = replace(standing, read_model_url=link.url, rabbitmq_url=to_broker.url)
        rebuilding = asyncio.create_task(rebuilt(wired))
        await eventually(switched, within=WITHIN_S)
        link.cut()
        with pytest.raises(Unsure, match="dry-run"):
            await rebuilding
    await eventually(lambda: settled(standing), within=WITHIN_S)
    assert await read_model(standing) == await folded_log(standing)


async def test_a_dry_run_finds_what_is_not_as_the_log_says_and_a_rebuild_mends_it(
    standing: Deployment, client: Client, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    patients = {name: f"{name}-{uuid4()}" for name in ("changed", "lost", "old")}
    for patient_id in patients.values():
        await client.command("GrantConsent", patient_id, target="exams")
    await eventually(lambda: settled(standing), within=WITHIN_S)
    clean = await rebuilt(standing, dry_run=True)
    assert {one.table for one in clean.compared} == set(TABLES) - {"checkpoints"}
    assert clean.differences == 0

    plant = [
        ("UPDATE patient_consent SET permissions = '{exams,conditions}'", patients["changed"]),
        ("DELETE FROM patient_consent", patients["lost"]),
        ("UPDATE patients SET version = 7", patients["old"]),
    ]
    for statement, patient_id in plant:
        await connection.execute(f"{statement} WHERE patient_id = $1", patient_id)
    extra = "INSERT INTO patient_consent VALUES ('nobody', 'nurse', 'n-1', '{exams}', '{}')"
    await connection.execute(extra)

    done = await asyncio.to_thread(
        standing.run, "projection_service", "rebuild", "--dry-run", "--json"
    )
    assert done.returncode == 1
    found = {
        one["key"]["patient_id"]: (one["live"], one["rebuilt"])
        for table in json.loads(done.stdout)["compared"]
        for one in table["examples"]
    }
    assert found.keys() == {*patients.values(), "nobody"}
    live, by_the_log = found[patients["changed"]]
    assert (live["permissions"], by_the_log["permissions"]) == (["exams", "conditions"], ["exams"])
    assert found[patients["lost"]][0] is None
    assert found["nobody"][1] is None
    assert [row["version"] for row in found[patients["old"]]] == [7, 1]

    shown = await asyncio.to_thread(
        standing.run, "projection_service", "rebuild", "--dry-run", COLUMNS="160"
    )
    assert shown.returncode == 1
    assert "patient_consent: 3 differences" in shown.stdout
    assert "compared, nothing was changed" in shown.stdout
    assert "no such row" in shown.stdout

    await rebuilt(standing)
    assert (await rebuilt(standing, dry_run=True)).events == await log_size(standing)
    assert await read_model(standing) == await folded_log(standing)


async def test_what_was_purged_of_the_history_is_no_difference_and_does_not_come_back(
    standing: Deployment, client: Client, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    patient_id = f"purged-{uuid4()}"
    await client.command("GrantConsent", patient_id, target="exams")
    await client.command("RevokeConsent", patient_id, target="exams")
    await client.command("GrantConsent", patient_id, target="conditions")
    await eventually(lambda: settled(standing), within=WITHIN_S)
    await connection.execute("INSERT INTO history_horizon (known_since) VALUES (now())")
    ended = "FROM consent_history WHERE ended_at <= (SELECT known_since FROM history_horizon)"
    await connection.execute(f"DELETE {ended}")  # as a purge would, but for its shortest age

    assert (await rebuilt(standing, dry_run=True)).differences == 0
    await rebuilt(standing)
    assert await connection.fetchval(f"SELECT count(*) {ended}") == 0
    periods = "SELECT record_type FROM consent_history WHERE patient_id = $1 ORDER BY began_version"
    kept = await connection.fetch(periods, patient_id)
    assert [row["record_type"] for row in kept] == ["conditions"]

    await connection.execute("DELETE FROM history_horizon")  # all is wanted again: the log has it
    await rebuilt(standing)
    kept = await connection.fetch(periods, patient_id)
    assert [row["record_type"] for row in kept] == ["exams", "conditions"]


async def test_what_is_parked_stays_parked_and_what_was_discarded_stays_discarded(
    standing: Deployment, client: Client, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    patient_id = f"odd-{uuid4()}"
    first = await client.command("GrantConsent", patient_id, id_="d-1")
    partition = first["partition"]
    data = json.dumps(body_of("GrantConsent", patient_id, "exams", id_="d-3"))
    await log_event(standing, patient_id, partition, version=2, type="ConsentExpired")
    await log_event(standing, patient_id, partition, version=3, type="ConsentGranted", data=data)
    await client.command("GrantConsent", neighbour(client, patient_id))  # shows the gap
    parked = "SELECT count(*) FROM parked_events WHERE patient_id = $1"

    async def both_parked() -> bool:
        return bool(await connection.fetchval(parked, patient_id) == 2)

    await eventually(both_parked, within=WITHIN_S)
    assert (await rebuilt(standing, dry_run=True)).parked == 2
    assert (await rebuilt(standing)).parked == 2
    assert await connection.fetchval(parked, patient_id) == 2
    listed = await client.query("ListConsents", patient_id=patient_id)
    assert (listed["version"], len(listed["consents"])) == (1, 1)

    position = str(first["events"][0]["position"] + 1)
    for verb in (("discard", patient_id, position), ("retry", patient_id)):
        done = await asyncio.to_thread(standing.run, "projection_service", "parked", *verb)
        assert done.returncode == 0, done
    after = await rebuilt(standing)
    assert (after.switched, after.parked) == (True, 0)
    listed = await client.query("ListConsents", patient_id=patient_id, min_version=3)
    assert [one["entity_id"] for one in listed["consents"]] == ["d-1", "d-3"]
    assert (await rebuilt(standing, dry_run=True)).differences == 0


def neighbour(client: Client, patient_id: str) -> str:
    """Name another patient of the same partition."""
    names = (f"neighbour-{uuid4()}" for _ in count())
    key = client.key("GrantConsent", patient_id)
    return next(name for name in names if client.key("GrantConsent", name) == key)


async def log_event(
    deployment: Deployment, patient_id: str, partition: int, *, version: int, **columns: str
) -> None:
    """Append an event past the command service, such as a newer one would write."""
    connection = await asyncpg.connect(deployment.event_store_url)
    await connection.execute(
        """WITH next AS (
               UPDATE partitions SET position = position + 1, published_position = position + 1
                WHERE partition = $1 RETURNING position)
           INSERT INTO events
           SELECT $1, position, $2, $3, gen_random_uuid(), $4, 1, $5, now(), 'c',
                  gen_random_uuid(), NULL, NULL, $6 FROM next""",
        partition,
        patient_id,
        version,
        columns["type"],
        columns.get("data", "{}"),
        columns.get("tracestate"),
    )
    await connection.close()


MADE: Final = (
    """SELECT c.relname::text, c.relkind, c.reloptions, pg_get_userbyid(c.relowner),
              (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(c.relacl) a) AS rights
         FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1""",
    """SELECT c.relname::text, a.attname::text, a.attacl::text, format_type(atttypid, atttypmod),
              a.attnotnull, a.attcollation
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1, 2""",
    """SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace ORDER BY 1""",
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
)
"""What the tables are like, by the catalogue."""


@pytest.fixture(scope="module")
def roles(sandbox: Sandbox, standing: Deployment) -> Iterator[str]:
    """Let one role own the read model and another one work on it; return the database's name."""
    server = sandbox.read_model_server
    for name in ("rebuild_owner", "rebuild_worker"):
        server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw'")
    database = standing.read_model_url.rsplit("/", 1)[1]
    server.execute(f"GRANT CREATE ON DATABASE {database} TO rebuild_owner")
    server.execute(
        """DO $$ DECLARE name text; BEGIN
             FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
               EXECUTE format('ALTER TABLE public.%I OWNER TO rebuild_owner', name);
             END LOOP;
             GRANT ALL ON SCHEMA public TO rebuild_owner;
           END $$""",
        database,
    )
    done = standing.run("projection_service", "migrate", "--worker-role", "rebuild_worker")
    assert done.returncode == 0, done.stderr
    yield database
    for name in ("rebuild_owner", "rebuild_worker"):
        server.execute(f"REASSIGN OWNED BY {name} TO consent; DROP OWNED BY {name}", database)
        server.execute(f"DROP ROLE {name}")


async def test_the_new_tables_are_made_owned_and_granted_as_the_old_ones(
    standing: Deployment, connection: "asyncpg.Connection[asyncpg.Record]", roles: str
) -> None:
    before = [await connection.fetch(sql) for sql in MADE]
    owner = with_login(standing.read_model_url, "rebuild_owner", "pw")
    for url in (standing.read_model_url, owner):  # an administrator's, and the owner's own
        done = await asyncio.to_thread(
            standing.run, "projection_service", "rebuild", READ_MODEL_URL=url
        )
        assert done.returncode == 0, done.stderr
        assert [await connection.fetch(sql) for sql in MADE] == before


async def test_who_lacks_the_rights_is_told_so_in_one_line(
    standing: Deployment, sandbox: Sandbox, roles: str
) -> None:
    worker = with_login(standing.read_model_url, "rebuild_worker", "pw")
    owner = with_login(standing.read_model_url, "rebuild_owner", "pw")
    refused = standing.run("projection_service", "rebuild", READ_MODEL_URL=worker)
    assert (refused.returncode, refused.stderr) == (
        2,
        (
            "error: only rebuild_owner, who owns the read model's tables, can rebuild it: "
            "put that role into READ_MODEL_URL\n"
        ),
    )
    server = sandbox.read_model_server
    server.execute(f"REVOKE CREATE ON DATABASE {roles} FROM rebuild_owner")
    refused = standing.run("projection_service", "rebuild", READ_MODEL_URL=owner)
    server.execute(f"GRANT CREATE ON DATABASE {roles} TO rebuild_owner")
    assert (refused.returncode, refused.stderr) == (
        2,
        (
            "error: rebuild_owner may not create the schema consent_shadow: "
            f'GRANT CREATE ON DATABASE "{roles}" TO "rebuild_owner"\n'
        ),
    )


async def test_what_somebody_else_made_of_the_tables_is_never_dropped_with_them(
    standing: Deployment, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    before = await everything(connection)
    await connection.execute("CREATE VIEW report AS SELECT count(*) FROM patients")
    done = await asyncio.to_thread(standing.run, "projection_service", "rebuild")
    assert done.returncode == 3
    assert done.stderr.startswith("error: the database refused: cannot drop")
    assert len(done.stderr.splitlines()) == 1
    assert await connection.fetchval("TABLE report") == len(before[0][0])
    await connection.execute("DROP VIEW report")
    assert await everything(connection) == before


async def test_it_fills_a_read_model_that_was_never_projected_and_the_projection_goes_on(
    deployment: Deployment,
) -> None:
    deployment.start("command_service").wait_ready()
    empty = await rebuilt(deployment)
    assert (empty.switched, empty.events) == (True, 0)

    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        await replies(client, await flood(client, patients=5))
        data = json.dumps(body_of("GrantConsent", "p-large", "exams"))
        large = {"type": "ConsentGranted", "data": data, "tracestate": "x" * 300_000}
        for version in range(1, 6):  # four of these fill a page
            await log_event(deployment, "p-large", 0, version=version, **large)
        first = await rebuilt(deployment)
        assert first.events == await log_size(deployment)
        assert await read_model(deployment) == await folded_log(deployment)

        deployment.start("projection_service").wait_ready()
        last = await client.command("GrantConsent", "p-0", id_="d-new")
        found = await client.query(
            "HasConsent",
            patient_id="p-0",
            entity_name="doctor",
            entity_id="d-new",
            permission="exams",
            min_version=last["version"],
        )
        assert found["has_consent"]
        await eventually(lambda: settled(deployment), within=WITHIN_S)
        assert (await rebuilt(deployment, dry_run=True)).differences == 0

    await fetch(
        deployment.read_model_url, "UPDATE checkpoints SET position = 9999 WHERE partition = 0"
    )
    for dry_run in (True, False):  # it is made of what the log has
        made = await rebuilt(deployment, dry_run=dry_run)
        assert [one.partition for one in made.set_back] == [0]
        assert made.switched is not dry_run
    assert await read_model(deployment) == await folded_log(deployment)


def bar(steps: Sequence[int]) -> str:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with show_progress(console) as progress:
        progress.expect(10_000)
        for step in steps:
            progress.advance(step)
        progress.say("waiting: [somebody]")
        progress.say("waiting: [somebody]")
    return screen.getvalue()


def test_every_statement_names_the_tables_in_the_order_in_which_a_rebuild_locks_them() -> None:
    for file in (Path(shadow.__file__).parent / "sql").glob("*.sql"):
        text = "\n".join(line.partition("--")[0] for line in file.read_text().splitlines())
        named = re.findall(rf"(?:FROM|JOIN|INTO|UPDATE) ({'|'.join(TABLES)})\b", text)
        order = list(dict.fromkeys(named))
        if file.stem == "had_consent":  # what its select list names is locked after its FROM
            order.remove("consent_history")
        assert order == sorted(order, key=TABLES.index), file.name


def test_the_bar_shows_events_rate_and_time_left_and_says_once_why_it_waits() -> None:
    shown = bar([2_000, 3_000])
    assert "5,000 of 10,000 events" in shown
    assert "/s" in shown
    assert shown.count("waiting: [somebody]") == 1
