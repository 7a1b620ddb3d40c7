"""A log that was restored to an older state: who had more of it notices before it takes anything.

Until an operator has decided nobody gets a wrong answer; then the read model follows the log.
"""

import json
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.servers import DatabaseServer
from tests.servers.test_cli import CONSENT
from tests.support import warm
from tests.support.amqp import Client, Json, body_of, open_client
from tests.support.backups import Backup
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch, folded_log, log_size, projected, read_model

PATIENT = "p-1"
PARTITION = 3
"""Of that patient."""
ELSEWHERE = "p-2"
"""A patient of another partition."""


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[Client]:
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as connected:
        yield connected


@pytest.fixture
def backups(sandbox: Sandbox) -> Iterator[list[Backup]]:
    taken: list[Backup] = []
    yield taken
    for backup in taken:
        backup.drop()


@pytest.fixture
async def ahead(
    sandbox: Sandbox, deployment: Deployment, client: Client, backups: list[Backup]
) -> Backup:
    """Give the backup of an event store; afterwards, more was granted to doctors and projected."""
    granted = (PATIENT, "d-kept"), (ELSEWHERE, "d-kept")
    event_store = sandbox.event_store_server, deployment.event_store_url
    backups += await backed_up(deployment, client, granted, event_store)
    for doctor in ("d-lost", "d-lost-too"):
        await grant(client, PATIENT, doctor)
    deployment.restart(deployment.workers[0])
    return backups[0]


async def backed_up(
    deployment: Deployment,
    client: Client,
    granted: Iterable[tuple[str, str]],
    *databases: tuple[DatabaseServer, str],
) -> list[Backup]:
    """Back databases up in which this was granted, and have workers again.

    Beneath a worker its sessions would be cut, which it may not know yet when it seems ready.
    """
    deployment.start_both()
    for patient_id, doctor in granted:
        await grant(client, patient_id, doctor)
    for worker in deployment.workers:
        assert worker.stop() == 0, worker.account()
    deployment.workers.clear()
    taken = [Backup.take(server, url) for server, url in databases]
    deployment.start_both()
    return taken


async def grant(client: Client, patient_id: str, doctor: str) -> None:
    """Grant, and return once that is projected."""
    reply = await client.command("GrantConsent", patient_id, id_=doctor)
    assert reply["status"] == "accepted", reply
    answer = await asked(client, patient_id, doctor, min_version=reply["version"])
    assert answer["has_consent"], answer


async def asked(client: Client, patient_id: str, doctor: str, **more: object) -> Json:
    return await client.query(
        "HasConsent",
        patient_id=patient_id,
        entity_name="doctor",
        entity_id=doctor,
        permission="exams",
        **more,
    )


async def is_refused(client: Client, patient_id: str = PATIENT, doctor: str = "d-kept") -> bool:
    return (await asked(client, patient_id, doctor)).get("error") == "log_set_back"


def troubles(worker: Worker) -> list[str]:
    _, body = worker.get("/health/ready")
    return [trouble["missing"] for trouble in json.loads(body or "{}").get("troubles", [])]


async def says_so(worker: Worker) -> bool:
    return "log_set_back" in troubles(worker)


async def noticed(deployment: Deployment) -> bool:
    return all([await says_so(worker) for worker in deployment.workers])


async def all_projected(deployment: Deployment) -> bool:
    return await projected(deployment) == await log_size(deployment)


async def follows_the_log(deployment: Deployment) -> None:
    """Check that the read model is what the log says, and that an audit agrees."""
    await eventually(lambda: all_projected(deployment))
    assert await read_model(deployment) == await folded_log(deployment)
    audit = deployment.run("projection_service", "rebuild", "--dry-run")
    assert audit.returncode == 0, audit.stdout + audit.stderr


async def test_answers_are_refused_and_commands_wait_until_an_operator_has_decided(
    deployment: Deployment, client: Client, ahead: Backup
) -> None:
    ahead.restore()
    await eventually(lambda: noticed(deployment), within=60)
    assert await is_refused(client)
    line = f"{PATIENT} doctor d-kept exams"
    for words, lines in ((line.split(), ""), (["-"], line)):
        told = warm.run([CONSENT, "check", *words], deployment.environment(), given=lines)
        assert told.returncode == 3, told.stdout + told.stderr  # nobody used it wrongly
    assert (await asked(client, ELSEWHERE, "d-kept"))["has_consent"]  # nothing of it was lost
    command, projection = deployment.workers
    for worker in deployment.workers:
        assert worker.metric("consent_log_set_back", f'partition="{PARTITION}"') == 1
        assert worker.metric("consent_log_set_back") == 1
    for service in ("command_service", "projection_service"):
        checked = deployment.run(service, "check")
        assert checked.returncode == 1, checked.stdout
        assert "set back" in checked.stdout
    waiting = await client.send("RevokeConsent", body_of("RevokeConsent", PATIENT, id_="d-kept"))
    assert (await client.command("GrantConsent", ELSEWHERE, id_="d-2"))["status"] == "accepted"
    assert await client.length(f"consent.commands.{PARTITION}") == 1

    accepted = deployment.run("command_service", "accept-log")
    assert accepted.returncode == 0, accepted.stderr
    assert "2 events that were published are no more" in accepted.stdout
    assert (await client.reply(waiting))["status"] == "accepted"
    assert await is_refused(client)  # the read model still stands on what is no more

    rebuilt = deployment.run("projection_service", "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert f"partition {PARTITION} was set back" in rebuilt.stdout

    async def is_over() -> bool:
        workers = (command, projection)
        return all(
            worker.get("/health/ready")[0] == 200 and worker.metric("consent_log_set_back") == 0
            for worker in workers
        )

    await eventually(is_over)
    await follows_the_log(deployment)
    for doctor in ("d-kept", "d-lost", "d-lost-too"):
        assert (await asked(client, PATIENT, doctor))["has_consent"] is False


async def test_a_log_that_has_its_events_again_needs_no_decision(
    sandbox: Sandbox,
    deployment: Deployment,
    client: Client,
    ahead: Backup,
    backups: list[Backup],
) -> None:
    right = Backup.take(sandbox.event_store_server, deployment.event_store_url, "right")
    backups.append(right)
    ahead.restore()
    await eventually(lambda: noticed(deployment), within=60)
    right.restore()

    async def is_answered_as_before() -> bool:
        return bool((await asked(client, PATIENT, "d-lost")).get("has_consent"))

    await eventually(is_answered_as_before, within=60)
    for worker in deployment.workers:
        worker.wait_ready()
    await grant(client, PATIENT, "d-new")
    await follows_the_log(deployment)


async def test_nobody_is_told_yes_after_a_revoke_where_commands_go_on(
    deployment: Deployment, client: Client, ahead: Backup
) -> None:
    deployment.workers[0].stop()
    ahead.restore()
    deployment.start("command_service", COMMANDS_WHEN_SET_BACK="go_on").wait_ready()
    revoked = await client.command("RevokeConsent", PATIENT, id_="d-kept")
    assert revoked["status"] == "accepted"
    await eventually(lambda: is_refused(client))
    for doctor in ("d-1", "d-2", "d-3", "d-4"):  # past what had been projected before
        again = await client.command("GrantConsent", PATIENT, id_=doctor)
        assert again["status"] == "accepted"
    assert await is_refused(client)
    assert deployment.run("projection_service", "rebuild").returncode == 0
    await eventually(lambda: all_projected(deployment))

    async def is_answered() -> bool:
        return not await is_refused(client)

    await eventually(is_answered)
    assert (await asked(client, PATIENT, "d-kept"))["has_consent"] is False
    assert (await asked(client, PATIENT, "d-4"))["has_consent"] is True
    await follows_the_log(deployment)


async def test_a_log_that_has_overtaken_the_read_model_meanwhile_is_noticed_by_its_events(
    deployment: Deployment, client: Client, ahead: Backup
) -> None:
    command, projection = deployment.workers
    assert projection.stop() == command.stop() == 0
    ahead.restore()
    await forget_what_the_broker_knows(client)
    deployment.start("command_service").wait_ready()
    for doctor in ("d-1", "d-2", "d-3", "d-4"):
        assert (await client.command("GrantConsent", PATIENT, id_=doctor))["status"] == "accepted"
    rows = await fetch(deployment.event_store_url, "SELECT count(*) AS n FROM generations")
    assert rows[0]["n"] == 0  # nobody could know
    again = deployment.start("projection_service")
    await eventually(lambda: is_refused(client), within=60)
    await eventually(lambda: says_so(again))
    assert deployment.run("projection_service", "rebuild").returncode == 0
    again.wait_ready()
    await follows_the_log(deployment)


async def forget_what_the_broker_knows(client: Client) -> None:
    for partition in range(PARTITIONS):
        for queue in (f"consent.witness.{partition}", f"consent.projection.{partition}"):
            found = await client.channel.get_queue(queue, ensure=False)
            await found.purge()


async def test_a_read_model_that_was_restored_catches_up_by_itself(
    sandbox: Sandbox, deployment: Deployment, client: Client, backups: list[Backup]
) -> None:
    deployment.start_both()
    await grant(client, PATIENT, "d-1")
    older = Backup.take(sandbox.read_model_server, deployment.read_model_url)
    backups.append(older)
    await grant(client, PATIENT, "d-2")
    older.restore()
    for worker in deployment.workers:
        worker.wait_ready()
    await follows_the_log(deployment)
    assert (await asked(client, PATIENT, "d-2"))["has_consent"]


async def test_of_two_that_were_restored_only_an_older_log_is_a_matter(
    sandbox: Sandbox,
    deployment: Deployment,
    client: Client,
    ahead: Backup,
    backups: list[Backup],
) -> None:
    model = Backup.take(sandbox.read_model_server, deployment.read_model_url)
    backups.append(model)
    await grant(client, PATIENT, "d-gone")
    deployment.restart(deployment.workers[0])
    model.restore()
    ahead.restore()
    await eventually(lambda: noticed(deployment), within=60)
    assert await is_refused(client)
    assert deployment.run("command_service", "accept-log").returncode == 0
    assert deployment.run("projection_service", "rebuild").returncode == 0
    for worker in deployment.workers:
        worker.wait_ready()
    await follows_the_log(deployment)
    assert (await asked(client, PATIENT, "d-gone"))["has_consent"] is False


async def test_of_two_that_were_restored_to_one_moment_while_nobody_worked_the_loss_is_noticed(
    sandbox: Sandbox, deployment: Deployment, client: Client, backups: list[Backup]
) -> None:
    granted = (PATIENT, "d-kept"), (PATIENT, "d-revoked")
    event_store = sandbox.event_store_server, deployment.event_store_url
    model = sandbox.read_model_server, deployment.read_model_url
    backups += await backed_up(deployment, client, granted, event_store, model)
    revoked = await client.command("RevokeConsent", PATIENT, id_="d-revoked")
    now = await asked(client, PATIENT, "d-revoked", min_version=revoked["version"])
    assert now["has_consent"] is False
    for worker in deployment.workers:
        assert worker.stop() == 0
    for backup in backups:
        backup.restore()
    for service in ("command_service", "command_service", "projection_service"):
        deployment.start(service)

    await eventually(lambda: is_refused(client, doctor="d-revoked"), within=60)
    assert deployment.run("command_service", "accept-log").returncode == 0
    for worker in deployment.workers[2:]:
        worker.wait_ready(within=60)
    await eventually(lambda: is_answered(client, "d-revoked"), within=60)
    await follows_the_log(deployment)


async def is_answered(client: Client, doctor: str) -> bool:
    return bool((await asked(client, PATIENT, doctor)).get("has_consent"))


async def test_a_broker_without_its_data_is_declared_anew_and_a_log_set_back_with_it_is_noticed(
    sandbox: Sandbox, deployment: Deployment, ahead: Backup
) -> None:
    vhost = deployment.rabbitmq_url.rsplit("/", 1)[1]
    sandbox.broker.delete_vhost(vhost)
    ahead.restore()
    sandbox.broker.create_vhost(vhost)
    await eventually(lambda: nobody_works(deployment), within=60)
    declared = deployment.run("command_service", "topology")
    assert declared.returncode == 0, declared.stderr
    deployment.workers[0].wait_ready()
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        await eventually(lambda: is_refused(client), within=60)
        assert deployment.run("command_service", "accept-log").returncode == 0
        assert deployment.run("projection_service", "rebuild").returncode == 0
        await follows_the_log(deployment)
        await grant(client, PATIENT, "d-after")


async def nobody_works(deployment: Deployment) -> bool:
    rows = await fetch(
        deployment.event_store_url,
        "SELECT count(*) AS n FROM partitions WHERE leased_until > now()",
    )
    return int(rows[0]["n"]) == 0
