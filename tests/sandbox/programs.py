"""The sandbox made of the PostgreSQL and RabbitMQ programs installed on the machine."""

import contextlib
import hmac
import re
import secrets
import shutil
import signal
import socket
from base64 import b64encode
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from tests.sandbox import install
from tests.sandbox.home import Home, Program, free_ports
from tests.sandbox.servers import (
    HASTY_POSTGRES_SETTINGS,
    HOST,
    POSTGRES_SETTINGS,
    USER,
    Broker,
    BrokerRefused,
    DatabaseServer,
    Sandbox,
    ServerDidNotStart,
)
from tests.support.certificates import Certificates

SECONDS_TO_START = 90.0
SECONDS_TO_STOP = 90.0

# As said by PostgreSQL and by the name server, by the broker of its clients' ports, and of its own.
PORT_TAKEN = re.compile("already in use|eaddrinuse|port_already_used")

RABBITMQ_CONFIG = """\
listeners.tcp.default = {host}:{port}
management.tcp.ip = {host}
management.tcp.port = {management_port}
default_user = {user}
default_pass = {password}
loopback_users = none
disk_free_limit.absolute = 50MB
log.file = false
log.console = true
log.console.level = warning
"""

RABBITMQ_TLS_CONFIG = """\
listeners.ssl.default = {host}:{port}
ssl_options.cacertfile = {authority}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
"""
CLUSTER_CONFIG = """\
cluster_partition_handling = pause_minority
net_ticktime = 4
"""
JOIN_CONFIG = """\
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = {first}
cluster_formation.classic_config.nodes.2 = {name}
"""
POSTGRES_TLS_USER = "encrypted"

# Idle cores are worth more to the workers beside it than to schedulers that wait by spinning, or
# that are woken for work which the one that is awake has soon done: that is a fifth of the broker's
# CPU at 500 commands a second.
SCHEDULERS = "+sbwt none +sbwtdcpu none +sbwtdio none +swt very_high"
ERLANG_ARGUMENTS = f"{SCHEDULERS} -kernel inet_dist_use_interface {{127,0,0,1}}"
# A node that was taken for dead is dialled again by whoever would use it, and waited for: 7 s else.
CLUSTER_ARGUMENTS = "-kernel net_setuptime 1"

# Nothing depends on these, and the server looks through the folder of every plugin there is for
# every module it loads: without them it starts in two thirds of the time.
LEFT_OUT_PLUGINS = tuple(
    f"rabbitmq_{name}"
    for name in (
        "amqp1_0", "auth_backend_", "auth_mechanism_", "aws", "consistent_hash_exchange",
        "event_exchange", "exchange_federation", "federation", "jms_topic_exchange", "mqtt",
        "peer_discovery_", "prometheus", "queue_federation", "random_exchange",
        "recent_history_exchange", "sharding", "shovel", "stomp", "stream-", "stream_management",
        "top", "tracing", "trust_store", "web_mqtt", "web_stomp",
    )
)  # fmt: skip


def open_programs(*, durable: bool, tls: Certificates | None = None) -> Sandbox:
    """Raises `ServerDidNotStart`."""
    try:
        return _open(durable=durable, tls=tls)
    except ServerDidNotStart as failure:
        # Somebody may have taken a port between our finding it free and the server's taking it.
        if not PORT_TAKEN.search(str(failure)):
            raise
        return _open(durable=durable, tls=tls)


def _open(*, durable: bool, tls: Certificates | None) -> Sandbox:
    rabbitmq, postgres = install.rabbitmq_programs(), install.postgres_programs()
    if rabbitmq is None or postgres is None:
        raise ServerDidNotStart(install.advice(install.missing_packages()))
    home = Home(durable=durable)
    with ThreadPoolExecutor() as threads:
        try:
            return _start_servers(home, threads, rabbitmq, postgres, durable=durable, tls=tls)
        except BaseException:
            # Before leaving the threads, which wait for servers that need not start any more.
            home.clear()
            raise


def _start_servers(
    home: Home,
    threads: Executor,
    rabbitmq: Path,
    postgres: Path,
    *,
    durable: bool,
    tls: Certificates | None,
) -> Sandbox:
    event_store_port, read_model_port, *broker_ports = free_ports(7)
    password = secrets.token_hex(16)
    files = tls and _hand_over(home, tls)
    broker = RabbitmqProgram(home, rabbitmq, broker_ports, files)
    event_store = PostgresProgram(home, postgres, "event_store", event_store_port, password)
    read_model = PostgresProgram(home, postgres, "read_model", read_model_port, password)
    broker_start = threads.submit(broker.start)
    event_store.create(durable=durable)
    if files:
        event_store.speak_tls(files)
    read_model.copy(event_store)
    list(threads.map(PostgresProgram.start, [event_store, read_model]))
    broker_start.result()
    return Sandbox(broker, event_store, read_model, close=home.clear)


def _hand_over(home: Home, tls: Certificates) -> Certificates:
    """Copy what the servers need to where they may read it, and nobody else the key."""
    copied = Certificates(home.path)
    home.write(copied.authority.name, tls.authority.read_text())
    home.write(copied.server.name, tls.server.read_text())
    home.write(copied.server_key.name, tls.server_key.read_text()).chmod(0o600)
    return copied


class PostgresProgram(DatabaseServer):
    def __init__(self, home: Home, programs: Path, name: str, port: int, password: str) -> None:
        super().__init__(port, password)
        self._home = home
        self._programs = programs
        self._name = name
        self.data = home.path / name
        self._program: Program | None = None

    def create(self, *, durable: bool) -> None:
        password_file = self._home.write("password", _kept_of(self.password))
        self._home.run(
            self._programs / "initdb",
            f"--pgdata={self.data}",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(_postgres_settings(self._programs, durable=durable))

    def speak_tls(self, tls: Certificates) -> None:
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"ssl = on\nssl_cert_file = '{tls.server}'\n")
            file.write(f"ssl_key_file = '{tls.server_key}'\n")
        rules = self.data / "pg_hba.conf"
        only_tls = f"hostnossl all {POSTGRES_TLS_USER} all reject\n"
        rules.write_text(only_tls + rules.read_text())

    def copy(self, other: "PostgresProgram") -> None:
        """Take over its data before it starts: a tenth of the time of creating one's own."""
        self._home.run("cp", "-a", other.data, self.data)

    def freeze(self) -> None:
        """Let it, and all that it started, do nothing any more, though nobody is told so."""
        for process in self._processes():
            process.suspend()

    def kill_frozen(self) -> None:
        """End a frozen one, before it could go on."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._program:
            self._program.process.wait()

    def _processes(self) -> list[psutil.Process]:
        if self._program is None:
            return []
        first = psutil.Process(self._program.process.pid)
        return [first, *first.children(recursive=True)]

    def follow(self, primary: "PostgresProgram") -> None:
        """Become a standby of a server that runs, with a copy of its data instead of its own."""
        if self._program:
            self._program.end(signal.SIGQUIT, SECONDS_TO_STOP)
        shutil.rmtree(self.data, ignore_errors=True)
        user = f"postgresql://{USER}:{self.password}@{primary.host}:{primary.port}/?"
        self._home.run(
            self._programs / "pg_basebackup",
            f"--dbname={user}application_name={self._name}",
            f"--pgdata={self.data}",
            "--checkpoint=fast",
            "--write-recovery-conf",
            "--no-sync",
        )

    def start(self) -> None:
        command: list[str | Path] = [
            self._programs / "postgres",
            "-D",
            self.data,
            "-p",
            str(self.port),
        ]
        self._program = self._home.launch(self._name, *command)
        self._program.wait_until(self.answers, SECONDS_TO_START)

    def stop(self) -> None:
        if self._program:
            self._program.end(signal.SIGINT, SECONDS_TO_STOP)

    def kill(self) -> None:
        """Without a checkpoint, so that the next start recovers from the write-ahead log.

        Not by SIGKILL, after which sessions could hold on to the data for a while.
        """
        if self._program:
            self._program.end(signal.SIGQUIT, SECONDS_TO_STOP)


def _kept_of(password: str) -> str:
    """Make what PostgreSQL keeps of a password, by one round instead of 4,096.

    Each connection makes them again, which is half of what a client computes for it; a password
    that nobody can guess needs only one.
    """
    salt = secrets.token_bytes(16)
    salted = pbkdf2_hmac("sha256", password.encode(), salt, 1)
    client_key, server_key = (
        hmac.digest(salted, word, "sha256") for word in (b"Client Key", b"Server Key")
    )
    kept = (salt, sha256(client_key).digest(), server_key)
    return "SCRAM-SHA-256$1:{}${}:{}".format(*(b64encode(one).decode() for one in kept))


def _postgres_settings(programs: Path, *, durable: bool) -> list[str]:
    settings = POSTGRES_SETTINGS | ({} if durable else HASTY_POSTGRES_SETTINGS)
    # Only TCP, so that the length of the directory's name can't matter.
    settings |= {"listen_addresses": HOST, "unix_socket_directories": ""}
    if not _has_pg_stat_statements(programs):
        del settings["shared_preload_libraries"]
    return [f"{name} = '{value}'\n" for name, value in settings.items()]


def _has_pg_stat_statements(programs: Path) -> bool:
    """Distributions put PostgreSQL's libraries at one of two depths."""
    library = "pg_stat_statements.*"
    return any(
        found
        for pattern in (f"lib/{library}", f"lib/postgresql*/{library}")
        for found in programs.parent.glob(pattern)
    )


@dataclass(frozen=True)
class Membership:
    """What a node of a cluster must know; all of them share one name server and one secret."""

    name: str
    first: str
    """The node that the others join; it starts before them, and has the name server."""
    secret: str

    @property
    def is_first(self) -> bool:
        """Whether the others join this one."""
        return self.name == self.first


class RabbitmqProgram(Broker):
    """With a name server of its own (epmd), which any other broker on the machine can't see."""

    def __init__(
        self,
        home: Home,
        programs: Path,
        ports: list[int],
        tls: Certificates | None,
        cluster: Membership | None = None,
    ) -> None:
        port, management_port, self._node_port, self._names_port, tls_port = ports
        super().__init__(
            port, management_port, cluster.secret if cluster else secrets.token_hex(16)
        )
        self.name = cluster.name if cluster else f"consent-{secrets.token_hex(4)}@localhost"
        self._cluster = cluster
        self._tls = tls
        self.tls_port = tls_port if tls else 0
        self._home = home
        self._server = programs / "rabbitmq-server"
        self._program: Program | None = None
        self._names: Program | None = None
        self._environment = self._variables() | self._fewer_plugins(programs)

    def start(self) -> None:
        if self._cluster is None or self._cluster.is_first:
            self._start_names()
        self._program = self._home.launch("broker", self._server, **self._environment)
        self._program.wait_until(self.answers, SECONDS_TO_START)

    def stop(self) -> None:
        if self._program:
            self._program.end(signal.SIGTERM, SECONDS_TO_STOP)

    def kill(self) -> None:
        """Use `put_on_disk` first for what was declared a moment before."""
        if self._program:
            self._program.end(signal.SIGKILL, SECONDS_TO_STOP)

    def freeze(self) -> None:
        """Let it do nothing any more, though nobody is told so."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._program:
            self._program.process.send_signal(number)

    def ctl(self, *words: str) -> None:
        # Not with the home of links, in which this program is looked for in vain.
        environment = {**self._environment}
        environment.pop("RABBITMQ_SCRIPTS_DIR", None)
        program = self._server.with_name("rabbitmqctl")
        running = self._home.launch("rabbitmqctl", program, *words, **environment)
        if running.process.wait(SECONDS_TO_START):
            raise BrokerRefused(running.account("failed"))

    def _start_names(self) -> None:
        """Before the broker, which would otherwise start one that outlives it."""
        if self._names is None:
            where = ["-port", str(self._names_port), "-address", HOST]
            self._names = self._home.launch("epmd", "epmd", *where)
            self._names.wait_until(lambda: _listens(self._names_port), SECONDS_TO_START)

    def _variables(self) -> dict[str, str]:
        folder = self._home.path
        return {
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_CONFIG_FILE": str(self._config()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._plugins()),
            # Empty, lest those of the machine be read.
            "RABBITMQ_CONF_ENV_FILE": str(self._home.write("rabbitmq-env.conf", "")),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._home.write("advanced.config", "[].")),
            "RABBITMQ_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "broker"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_PID_FILE": str(folder / "broker.pid"),
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "ERL_EPMD_PORT": str(self._names_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": self._arguments(),
            # Makes the start script become the server instead of its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _arguments(self) -> str:
        return f"{ERLANG_ARGUMENTS} {CLUSTER_ARGUMENTS}" if self._cluster else ERLANG_ARGUMENTS

    def _config(self) -> Path:
        config = RABBITMQ_CONFIG.format(
            host=HOST,
            port=self.port,
            management_port=self.management_port,
            user=USER,
            password=self.password,
        )
        if self._tls:
            config += RABBITMQ_TLS_CONFIG.format(
                host=HOST,
                port=self.tls_port,
                authority=self._tls.authority,
                certificate=self._tls.server,
                key=self._tls.server_key,
            )
        if self._cluster:
            self._home.write(".erlang.cookie", self._cluster.secret).chmod(0o400)
            config += CLUSTER_CONFIG
            config += "" if self._cluster.is_first else JOIN_CONFIG.format(**vars(self._cluster))
        return self._home.write("rabbitmq.conf", config)

    def _plugins(self) -> Path:
        return self._home.write("enabled_plugins", "[rabbitmq_management].")

    def _fewer_plugins(self, programs: Path) -> dict[str, str]:
        """A second home for the same server, made of links, from which some are missing."""
        plugins = programs.parent / "plugins"
        if not plugins.is_dir():
            return {}
        folder = self._home.make_folder("rabbitmq")
        (folder / "sbin").symlink_to(programs)
        (folder / "plugins").mkdir()
        for plugin in plugins.iterdir():
            if not plugin.name.startswith(LEFT_OUT_PLUGINS):
                (folder / "plugins" / plugin.name).symlink_to(plugin)
        return {"RABBITMQ_SCRIPTS_DIR": str(folder / "sbin")}


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
