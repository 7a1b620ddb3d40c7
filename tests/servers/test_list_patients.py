"""Whose records somebody may see: in pages, sorted, never cut off without a word."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg
import pytest

from projection_service.answers import list_patients
from projection_service.answers.list_patients import PatientLists
from shared.client.client import ConsentClient
from shared.messages.queries import ListPatients
from shared.postgres.connection import Pool
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.standing import standing_deployment

VERY_MANY: Final = 1_000_003
WRITE: Final = """
INSERT INTO patient_consent (patient_id, entity_name, entity_id, permissions, requested)
SELECT 'p-' || n, 'doctor', $2, $3, ARRAY[]::text[] FROM generate_series(1, $1::integer) AS n
"""


@pytest.fixture(scope="module")
def deployment(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, "patients", migrated) as made:
        yield made


@pytest.fixture
def lists(read_model_pool: Pool) -> tuple[PatientLists, Pool]:
    return PatientLists(read_model_pool), read_model_pool


async def all_pages(lists: PatientLists, **fields: object) -> list[list[str]]:
    pages, after = [], None
    while True:
        asked = ListPatients.model_validate(
            {"entity_name": "doctor", "entity_id": "d-1", "after": after} | fields
        )
        (page,) = await lists.list_patients([asked])
        pages.append([patient.patient_id for patient in page.patients])
        after = page.next
        if after is None:
            return pages


def joined(pages: Sequence[list[str]]) -> list[str]:
    return [patient for page in pages for patient in page]


async def test_pages_follow_each_other_without_a_gap(lists: tuple[PatientLists, Pool]) -> None:
    asking, pool = lists
    await pool.execute(WRITE, 1_203, "d-1", ["exams"])
    await pool.execute(WRITE, 50, "d-2", ["exams"])
    pages = await all_pages(asking)
    assert [len(page) for page in pages] == [500, 500, 203]
    assert joined(pages) == sorted(f"p-{number}" for number in range(1, 1_204))
    assert joined(await all_pages(asking, limit=7)) == joined(pages)
    assert await all_pages(asking, entity_id="d-none") == [[]]


async def test_only_those_are_listed_of_whom_that_may_be_seen(
    lists: tuple[PatientLists, Pool],
) -> None:
    asking, pool = lists
    for number, permissions in enumerate((["exams"], ["conditions", "exams"], [])):
        await pool.execute(
            "INSERT INTO patient_consent VALUES ($1, 'doctor', 'd-1', $2, ARRAY['er_visits'])",
            f"p-{number}",
            permissions,
        )
    assert await all_pages(asking) == [["p-0", "p-1"]]
    assert await all_pages(asking, permission="conditions") == [["p-1"]]
    assert await all_pages(asking, permission="all") == [[]]


async def test_a_page_looks_at_so_many_consents_and_says_where_it_goes_on(
    lists: tuple[PatientLists, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_patients, "LOOKED_AT", 10)
    asking, pool = lists
    await pool.execute(WRITE, 99, "d-1", ["exams"])
    await pool.execute(
        "UPDATE patient_consent SET permissions = ARRAY['exams', 'conditions'] "
        "WHERE patient_id IN ('p-5', 'p-50', 'p-77', 'p-99')"
    )
    pages = await all_pages(asking, permission="conditions", limit=5)
    assert len(pages) == 10
    assert joined(pages) == ["p-5", "p-50", "p-77", "p-99"]


async def test_what_has_come_to_its_end_is_not_listed_though_nobody_has_recorded_it(
    lists: tuple[PatientLists, Pool],
) -> None:
    asking, pool = lists
    now = datetime.now(UTC)
    for patient, end in (("p-over", now - timedelta(seconds=1)), ("p-still", now + timedelta(1))):
        await pool.execute(
            "INSERT INTO patient_consent (patient_id, entity_name, entity_id, permissions, "
            "requested, ends) VALUES ($1, 'doctor', 'd-1', ARRAY['exams', 'conditions'], "
            "ARRAY[]::text[], jsonb_build_object('exams', $2::text))",
            patient,
            end.isoformat(),
        )
    both, one = await all_pages(asking), await all_pages(asking, permission="exams")
    assert (both, one) == ([["p-over", "p-still"]], [["p-still"]])
    (page,) = await asking.list_patients([ListPatients(entity_name="doctor", entity_id="d-1")])
    over, still = page.patients
    assert (over.permissions, over.until) == (["conditions"], None)
    assert still.until == {"exams": now + timedelta(1)}


async def test_it_is_found_by_its_index_however_little_is_known_of_the_table(
    lists: tuple[PatientLists, Pool],
) -> None:
    asking, pool = lists
    await pool.execute(WRITE, 20_000, "d-others", ["exams"])
    await pool.execute(WRITE, 300, "d-1", ["exams"])
    await pool.execute("SELECT pg_stat_reset()")
    assert len((await all_pages(asking))[0]) == 300

    async def counted() -> int:
        return int(
            await pool.fetchval(
                "SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes "
                "WHERE relname = 'patient_consent'"
            )
        )

    await eventually(counted)
    assert await counted() < 1_000


async def test_of_a_million_patients_each_comes_once_while_grants_come_and_go(
    deployment: Deployment, client: Client
) -> None:
    """Who was there from the beginning to the end comes once; the others at most once."""
    connection = await asyncpg.connect(deployment.read_model_url)
    await connection.execute(WRITE, VERY_MANY, "d-many", ["exams"])
    await connection.close()
    coming_and_going = [f"p-{number}-new" for number in range(0, VERY_MANY, VERY_MANY // 40)]
    done = False

    async def grant_and_revoke() -> int:
        changes = 0
        while not done:
            patient = coming_and_going[changes // 2 % len(coming_and_going)]
            type_ = ("GrantConsent", "RevokeConsent")[changes % 2]
            outcome = await client.command(type_, patient, id_="d-many")
            assert outcome["status"] == "accepted"
            changes += 1
        return changes

    changing = asyncio.create_task(grant_and_revoke())
    url = deployment.rabbitmq_url
    async with ConsentClient.connect(url, partitions=PARTITIONS, within=60) as asking:
        seen = [one.patient_id async for one in asking.patients("doctor", "d-many")]
    done = True
    assert await changing > 10
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen)
    assert set(seen) - set(coming_and_going) == {f"p-{n}" for n in range(1, VERY_MANY + 1)}


async def test_a_page_that_is_no_page_is_refused(deployment: Deployment, client: Client) -> None:
    who = {"entity_name": "doctor", "entity_id": "d-1"}
    for wrong, field in (
        ({"limit": 501}, "limit"),
        ({"limit": 0}, "limit"),
        ({"after": ""}, "after"),
        ({"permission": "everything"}, "permission"),
        ({"min_version": 1}, "min_version"),
    ):
        refused = await client.query("ListPatients", **who, **wrong)
        assert refused["details"][0]["field"] == field
