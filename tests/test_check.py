"""`check` says what is missing and what to do, and who owns what."""

import json

from tests.conftest import PARTITIONS
from tests.deployment import Deployment
from tests.sandbox import Sandbox


def test_with_everything_there_it_is_content_and_tells_who_owns_what(
    deployment: Deployment,
) -> None:
    deployment.start_both()
    for service in ("command_service", "projection_service"):
        done = deployment.run(service, "check", "--json")
        assert done.returncode == 0, done
        report = json.loads(done.stdout)
        assert report["ok"]
        assert {one["name"] for one in report["findings"]} == {
            "database",
            "schema",
            "partitions",
            "leases",
            "broker",
            "topology",
        }
        owners = {one["owner"].split("/")[0] for one in report["partitions"]}
        assert len(report["partitions"]) == PARTITIONS
        assert len(owners) == 1
        assert owners.pop().startswith(service)
    shown = deployment.run("command_service", "check").stdout
    assert "✓ topology: 6 queues" in shown


def test_what_is_missing_is_named_with_the_remedy(deployment: Deployment, sandbox: Sandbox) -> None:
    bare = {
        "RABBITMQ_URL": sandbox.broker.create_vhost("check"),
        "READ_MODEL_URL": sandbox.read_model_server.create_database("check"),
        "EVENT_STORE_URL": "postgresql://nobody:secret@127.0.0.1:1/nothing",
    }
    projection = deployment.run("projection_service", "check", **bare)
    assert projection.returncode == 1
    assert "✗ schema: the database has no consent schema yet: run `migrate`" in projection.stdout
    assert "✗ topology: run `python -m command_service topology`; missing: consent.queries" in (
        projection.stdout
    )
    command = deployment.run("command_service", "check", **bare)
    assert command.returncode == 1
    assert "✗ database: not reached:" in command.stdout
    assert "secret" not in command.stdout + command.stderr
    sandbox.broker.delete_vhost("check")
    sandbox.read_model_server.drop_database("check")


def test_another_number_of_partitions_is_noticed(deployment: Deployment) -> None:
    done = deployment.run("command_service", "check", CONSENT_PARTITIONS="3")
    assert done.returncode == 1
    complaint = f"CONSENT_PARTITIONS is 3, but this deployment was made with {PARTITIONS}"
    assert f"✗ partitions: {complaint}" in done.stdout
