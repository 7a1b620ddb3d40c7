"""Lists of consents come in pages, and a patient's own log by its own key."""

from uuid import uuid4

import asyncpg

from command_service.domain.patient import MOST_REQUESTS
from shared.client.client import ConsentClient
from shared.postgres.connection import Pool
from shared.postgres.statements import statement
from tests.conftest import PARTITIONS
from tests.servers.test_cli import CONSENT
from tests.support import warm
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment

GRANTEES = 1_203


async def many_grantees(deployment: Deployment, patient_id: str) -> None:
    """Write a read model of one patient whom very many may see."""
    connection = await asyncpg.connect(deployment.read_model_url)
    await connection.execute("INSERT INTO patients VALUES ($1, $2)", patient_id, GRANTEES)
    await connection.execute(
        """INSERT INTO patient_consent
           SELECT $1, CASE number % 2 WHEN 0 THEN 'doctor' ELSE 'nurse' END, 'x-' || number,
                  ARRAY['exams'], ARRAY[]::text[]
             FROM generate_series(1, $2::integer) AS number""",
        patient_id,
        GRANTEES,
    )
    await connection.close()


async def test_a_list_that_is_not_whole_says_where_it_goes_on(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("projection_service").wait_ready()
    await many_grantees(deployment, "p-1")
    page = await client.query("ListConsents", patient_id="p-1")
    assert len(page["consents"]) == 500
    found = [*page["consents"]]
    while "next" in page:
        last = page["consents"][-1]
        assert page["next"] == {name: last[name] for name in ("entity_name", "entity_id")}
        page = await client.query("ListConsents", patient_id="p-1", limit=400, after=page["next"])
        found += page["consents"]
    grantees = [(one["entity_name"], one["entity_id"]) for one in found]
    assert len(set(grantees)) == GRANTEES
    assert grantees == sorted(grantees)
    refused = await client.query("ListConsents", patient_id="p-1", limit=501)
    assert refused["details"][0]["field"] == "limit"


async def test_the_client_and_the_command_line_list_all_pages(deployment: Deployment) -> None:
    deployment.start("projection_service").wait_ready()
    await many_grantees(deployment, "p-1")
    url = deployment.rabbitmq_url
    async with ConsentClient.connect(url, partitions=PARTITIONS) as connected:
        found = await connected.list_consents("p-1")
    assert (len(found.consents), found.next) == (GRANTEES, None)
    shown = warm.run([CONSENT, "list", "p-1", "--json"], deployment.environment())
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("entity_id") == GRANTEES


async def test_one_request_too_many_is_refused_with_an_outcome_of_its_own(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("command_service").wait_ready()
    sent = [
        await client.send("AskConsent", body_of("AskConsent", "p-1", id_=f"d-{number}"))
        for number in range(MOST_REQUESTS)
    ]
    assert {(await client.reply(one))["status"] for one in sent} == {"accepted"}
    id_ = str(uuid4())
    refused = await client.command("AskConsent", "p-1", id_="one-more", message_id=id_)
    assert (refused["status"], refused["error"]) == ("rejected", "too_many_requests")
    assert (await client.command("AskConsent", "p-1", id_="d-7"))["status"] == "accepted"
    assert (await client.command("GrantConsent", "p-1", id_="d-7"))["status"] == "accepted"
    assert (await client.command("AskConsent", "p-1", id_="one-more"))["status"] == "accepted"
    again = await client.command("AskConsent", "p-1", id_="one-more", message_id=id_)
    assert again["error"] == "too_many_requests", "the outcome of that command id stands"


async def test_the_log_of_one_patient_is_found_by_its_own_key(event_store_pool: Pool) -> None:
    query = statement("command_service", "read_log_of_patient")
    await event_store_pool.execute(
        """INSERT INTO events
           SELECT 0, number, 'p-' || number % 1000, number / 1000 + 1, gen_random_uuid(),
                  'ConsentGranted', 1, '{}', now(), 'c', gen_random_uuid(), NULL, NULL, NULL
             FROM generate_series(1, 100000) AS number"""
    )
    plan = await event_store_pool.fetch(f"EXPLAIN {query}", 0, 500, "p-7")
    text = "\n".join(row[0] for row in plan)
    assert "events_stream_version_key" in text
    assert "events_position_key" not in text
