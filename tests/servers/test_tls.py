"""TLS with a certificate authority of one's own, and how its troubles read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from command_service.cli import app as command_app
from projection_service.cli import app as projection_app
from tests.sandbox import Sandbox, install, open_sandbox
from tests.sandbox.servers import DatabaseServer
from tests.servers.test_cli import CONSENT
from tests.support import warm
from tests.support.amqp import open_client
from tests.support.certificates import Certificates, make_certificates
from tests.support.deployment import Deployment, ServiceName
from tests.support.eventually import eventually

PASSWORD: Final = "s3cret"  # noqa: S105 - of servers that live for this module
USER: Final = "encrypted"


@dataclass(frozen=True)
class Secured:
    """Servers that speak TLS, and the parts of which their URLs are made."""

    certificates: Certificates
    servers: Sandbox
    deployment: Deployment

    @property
    def trusted(self) -> Path:
        return self.certificates.authority

    @property
    def stranger(self) -> Path:
        return self.certificates.stranger

    def broker(self, query: str, *, scheme: str = "amqps", host: str = "localhost",
               password: str = PASSWORD, vhost: str = "secured", port: int = 0) -> str:  # fmt: skip
        port = port or self.servers.broker.tls_port
        return f"{scheme}://{USER}:{password}@{host}:{port}/{vhost}{query}"

    def database(self, server: DatabaseServer, query: str, *, host: str = "localhost",
                 password: str = PASSWORD, name: str = "secured") -> str:  # fmt: skip
        return f"postgresql://{USER}:{password}@{host}:{server.port}/{name}{query}"

    def event_store(self, query: str, **more: str) -> str:
        return self.database(self.servers.event_store_server, query, **more)

    def read_model(self, query: str, **more: str) -> str:
        return self.database(self.servers.read_model_server, query, **more)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if install.rabbitmq_programs() is None or install.postgres_programs() is None:
        pytest.skip("needs the programs of RabbitMQ and PostgreSQL, to give them certificates")
    folder = tmp_path_factory.mktemp("tls")
    certificates = make_certificates(folder)
    with open_sandbox(durable=False, tls=certificates) as servers:
        _admit(servers)
        bare = Deployment("", "", "", partitions=2, folder=folder)
        made = Secured(certificates, servers, bare)
        full = f"?sslmode=verify-full&sslrootcert={made.trusted}"
        deployment = replace(
            bare,
            rabbitmq_url=made.broker(
                f"?cafile={made.trusted}"
                f"&certfile={certificates.server}&keyfile={certificates.server_key}"
            ),
            event_store_url=made.event_store(full),
            read_model_url=made.read_model(full),
        )
        deployment.prepare()
        try:
            yield replace(made, deployment=deployment)
        finally:
            deployment.close()


def _admit(servers: Sandbox) -> None:
    """Make the user, whom the databases let in over TLS alone."""
    for server in (servers.event_store_server, servers.read_model_server):
        server.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
        server.create_database("secured")
        server.execute(f"ALTER DATABASE secured OWNER TO {USER}")
    api = servers.broker.api
    api("PUT", f"/users/{USER}", {"password": PASSWORD, "tags": ""})
    servers.broker.create_vhost("secured")
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    api("PUT", f"/permissions/secured/{USER}", everything)


async def test_the_main_job_is_done_over_tls_on_all_three_connections(secured: Secured) -> None:
    secured.deployment.start_both()
    async with open_client(secured.deployment.rabbitmq_url, partitions=2) as client:
        accepted = await client.command("GrantConsent", "p-1")
        who = {"patient_id": "p-1", "entity_name": "doctor", "entity_id": "d-1"}
        held = await client.query("HasConsent", **who, permission="exams", min_version=1)

        async def connections() -> list[tuple[bool, str]]:
            found = secured.servers.broker.api("GET", "/connections")
            shown = [(one.get("ssl"), one.get("peer_cert_subject")) for one in found]
            return shown if len(shown) >= 3 else []

        assert set(await eventually(connections)) == {(True, "CN=localhost")}
    assert (accepted["status"], held["has_consent"]) == ("accepted", True)
    sessions = f"""SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                    WHERE usename = '{USER}'"""  # noqa: S608
    for server in (secured.servers.event_store_server, secured.servers.read_model_server):
        assert {row["ssl"] for row in server.fetch(sessions)} == {True}
    assert [worker.stop() for worker in secured.deployment.workers] == [0, 0]


@dataclass(frozen=True)
class Wrong:
    """A URL that must be mended, and what is said about it."""

    setting: str
    says: str
    query: str = ""
    scheme: str = "amqps"
    host: str = "localhost"
    password: str = PASSWORD
    name: str = "secured"
    plain_port: bool = False

    def url(self, secured: Secured) -> str:
        query = self.query.format(trusted=secured.trusted, stranger=secured.stranger)
        if self.setting == "RABBITMQ_URL":
            return secured.broker(
                query,
                scheme=self.scheme,
                host=self.host,
                password=self.password,
                vhost=self.name,
                port=secured.servers.broker.port if self.plain_port else 0,
            )
        make = secured.event_store if self.setting == "EVENT_STORE_URL" else secured.read_model
        return make(query, host=self.host, password=self.password, name=self.name)


CAFILE: Final = "?cafile={trusted}"
FULL: Final = "?sslmode=verify-full&sslrootcert={trusted}"
UNKNOWN_CA: Final = "?sslmode=verify-full&sslrootcert={stranger}"
WRONG: Final = {
    "broker, another authority": Wrong(
        "RABBITMQ_URL",
        "the broker's TLS certificate is not trusted (self-signed certificate in certificate "
        "chain): check cafile, and the host's name, in RABBITMQ_URL",
        "?cafile={stranger}",
    ),
    "broker, the system's authorities": Wrong("RABBITMQ_URL", "certificate is not trusted"),
    "broker, another name": Wrong(
        "RABBITMQ_URL", "certificate is not valid for '127.0.0.1'", CAFILE, host="127.0.0.1"
    ),
    "broker, no such file": Wrong(
        "RABBITMQ_URL",
        "a certificate file named in RABBITMQ_URL can't be read (No such file or directory): "
        "check cafile and the other files there",
        "?cafile=/nowhere/authority.pem",
    ),
    "broker, not a certificate": Wrong(
        "RABBITMQ_URL", "check the certificate files in RABBITMQ_URL", f"?cafile={__file__}"
    ),
    "broker, TLS to plain": Wrong(
        "RABBITMQ_URL", "whether that port speaks TLS", CAFILE, plain_port=True
    ),
    "broker, wrong password": Wrong(
        "RABBITMQ_URL",
        "check the user and password in RABBITMQ_URL",
        CAFILE,
        password="gu3ss",  # noqa: S106
    ),
    "broker, no such virtual host": Wrong(
        "RABBITMQ_URL", "check the path of RABBITMQ_URL", CAFILE, name="nowhere"
    ),
    "event store, another authority": Wrong(
        "EVENT_STORE_URL",
        "the event store's TLS certificate is not trusted (unable to get local issuer "
        "certificate): check sslrootcert, and the host's name, in EVENT_STORE_URL",
        UNKNOWN_CA,
    ),
    "event store, another name": Wrong(
        "EVENT_STORE_URL", "certificate is not valid for '127.0.0.1'", FULL, host="127.0.0.1"
    ),
    "event store, no such file": Wrong(
        "EVENT_STORE_URL",
        "a certificate file named in EVENT_STORE_URL can't be read",
        "?sslmode=verify-full&sslrootcert=/nowhere/authority.pem",
    ),
    "event store, plain to TLS": Wrong(
        "EVENT_STORE_URL",
        "no encryption: check user and sslmode in EVENT_STORE_URL",
        "?sslmode=disable",
    ),
    "event store, wrong password": Wrong(
        "EVENT_STORE_URL",
        "check the user and password in EVENT_STORE_URL",
        FULL,
        password="gu3ss",  # noqa: S106
    ),
    "event store, no such database": Wrong(
        "EVENT_STORE_URL", "check the path of EVENT_STORE_URL", FULL, name="nowhere"
    ),
    "event store, no such mode": Wrong(
        "EVENT_STORE_URL", "EVENT_STORE_URL is wrong: `sslmode` parameter", "?sslmode=strict"
    ),
    "read model, another authority": Wrong(
        "READ_MODEL_URL",
        "the read model's TLS certificate is not trusted (unable to get local issuer "
        "certificate): check sslrootcert, and the host's name, in READ_MODEL_URL",
        UNKNOWN_CA,
    ),
    "read model, wrong password": Wrong(
        "READ_MODEL_URL",
        "check the user and password in READ_MODEL_URL",
        FULL,
        password="gu3ss",  # noqa: S106
    ),
}
VERBS: Final = {
    "RABBITMQ_URL": (command_app, "topology"),
    "EVENT_STORE_URL": (command_app, "migrate"),
    "READ_MODEL_URL": (projection_app, "migrate"),
}


def assert_one_line(code: int, complaint: str, says: str, *, expected: int = 2) -> None:
    assert code == expected
    (line,) = complaint.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not any(password in line for password in (PASSWORD, "gu3ss"))


@pytest.mark.parametrize("what", WRONG)
def test_what_must_be_mended_is_one_clear_line_and_exit_code_2(secured: Secured, what: str) -> None:
    wrong = WRONG[what]
    app, verb = VERBS[wrong.setting]
    environment = secured.deployment.environment(**{wrong.setting: wrong.url(secured)})
    done = CliRunner().invoke(app, [verb], env=environment)
    assert_one_line(done.exit_code, done.stderr, wrong.says)


def test_a_broker_that_hangs_up_may_be_one_that_speaks_tls_alone(secured: Secured) -> None:
    plain = secured.broker("", scheme="amqp")
    environment = secured.deployment.environment(RABBITMQ_URL=plain)
    done = CliRunner().invoke(command_app, ["topology"], env=environment)
    says = "if it speaks TLS alone, begin RABBITMQ_URL with amqps://"
    assert_one_line(done.exit_code, done.stderr, says, expected=3)


def test_a_database_without_tls_is_one_clear_line(secured: Secured, sandbox: Sandbox) -> None:
    plain = sandbox.event_store_server.url() + FULL.format(trusted=secured.trusted)
    environment = secured.deployment.environment(EVENT_STORE_URL=plain)
    done = CliRunner().invoke(command_app, ["migrate"], env=environment)
    says = "it has no TLS; check sslmode in EVENT_STORE_URL"
    assert_one_line(done.exit_code, done.stderr, says)


def test_the_consent_command_says_it_too(secured: Secured) -> None:
    wrong = WRONG["broker, another authority"]
    environment = secured.deployment.environment(RABBITMQ_URL=wrong.url(secured))
    done = warm.run([CONSENT, "list", "p-1"], environment)
    assert_one_line(done.returncode, done.stderr, wrong.says)


@pytest.mark.parametrize(
    ("service", "what", "missing"),
    [
        ("command_service", "broker, another authority", "broker"),
        ("command_service", "event store, another authority", "database"),
        ("projection_service", "read model, wrong password", "database"),
    ],
)
async def test_a_worker_waits_and_says_so(
    secured: Secured, service: ServiceName, what: str, missing: str
) -> None:
    wrong = WRONG[what]
    worker = secured.deployment.start(service, **{wrong.setting: wrong.url(secured)})

    async def said() -> bool:
        status, body = worker.get("/health/ready")
        told = json.loads(body) if status == 503 else {}
        return told.get("missing") == missing and wrong.says in told["reason"]

    await eventually(said)
    assert worker.process.poll() is None
    assert "Traceback" not in worker.log
    assert '"exception"' not in worker.log
    assert PASSWORD not in worker.log
    assert "gu3ss" not in worker.log
    assert worker.stop() == 0
