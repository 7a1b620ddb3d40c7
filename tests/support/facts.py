"""What the databases hold, and loads to put into them."""

import json
from collections import defaultdict
from typing import Any, Final

import asyncpg

from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment

TARGETS: Final = ("exams", "consultations", "conditions", "er_visits")


async def fetch(url: str, sql: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(sql)
    finally:
        await connection.close()


async def log_size(deployment: Deployment) -> int:
    rows = await fetch(deployment.event_store_url, "SELECT count(*) AS n FROM events")
    return int(rows[0]["n"])


async def projected(deployment: Deployment) -> int:
    rows = await fetch(
        deployment.read_model_url, "SELECT coalesce(sum(position), 0)::int AS n FROM checkpoints"
    )
    return int(rows[0]["n"])


async def folded_log(deployment: Deployment) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Fold the log as simply as can be: what each grantee may see."""
    granted: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for row in await fetch(
        deployment.event_store_url, "SELECT * FROM events ORDER BY partition, position"
    ):
        data = json.loads(row["data"])
        prefix = {"ConsentGranted": "to", "ConsentRevoked": "from"}.get(row["type"])
        if prefix:
            who = (data["patient_id"], data[f"{prefix}_entity"], data[f"{prefix}_id"])
            change = granted[who].add if prefix == "to" else granted[who].discard
            change(data["target"])
    return {who: tuple(sorted(types)) for who, types in granted.items() if types}


async def read_model(deployment: Deployment) -> dict[tuple[str, str, str], tuple[str, ...]]:
    rows = await fetch(deployment.read_model_url, "SELECT * FROM patient_consent")
    return {
        (row["patient_id"], row["entity_name"], row["entity_id"]): tuple(row["permissions"])
        for row in rows
        if row["permissions"]
    }


async def flood(client: Client, patients: int, doctors: int = 2) -> list[str]:
    """Send grants and revokes without waiting for replies; return the correlation ids."""
    return [
        await client.send(type_, body_of(type_, f"p-{patient}", target, id_=f"d-{doctor}"))
        for type_ in ("GrantConsent", "RevokeConsent", "GrantConsent")
        for target in TARGETS[:2]
        for doctor in range(doctors)
        for patient in range(patients)
    ]


async def replies(client: Client, ids: list[str]) -> list[dict[str, Any]]:
    return [await client.reply(one, within=60) for one in ids]
