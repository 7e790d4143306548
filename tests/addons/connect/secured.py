"""Real brokers that admit only who logs in: TLS with client certificates, users, passwords and permissions.

Each has the user `alice` with the password `SECRET`, who may use everything; `mallory` may not use `in`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.addons.connect import brokers
from tests.addons.connect.brokers import BrokerMissingError, BrokerProcess
from tests.addons.connect.certificates import Authority
from tests.addons.connect.kafka_gateway import KafkaGateway
from tests.processes import free_port

SECRET = "correct-horse/7?#@battery"
"""A password that a URL cannot have as it is."""


@dataclass
class Secured:
    """A broker, and how its places are named.

    Attributes:
        url: The URL of a place by its name, without a login.
        login: The keys of a login besides user and password: the trusted authority and the client's certificate.
        extra: What only some brokers have, such as `replace_password`.
    """

    broker: BrokerProcess
    form: str
    login: Mapping[str, str]
    extra: dict[str, Any] = field(default_factory=dict)

    def url(self, name: str) -> str:
        return self.form.format(port=self.broker.port, name=name)


def _login(authority: Authority) -> dict[str, str]:
    client = authority.issue("client")
    return {"ca": str(authority.ca), "cert": str(client.cert), "key": str(client.key)}


@contextlib.contextmanager
def redis(folder: Path, authority: Authority) -> Iterator[Secured]:
    """Run a Redis server with ACL users, on a port with TLS alone."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise BrokerMissingError("redis-server is not installed: apt-get install redis-server")
    port, own = free_port(), authority.issue("redis")
    acl = folder / "users.acl"
    acl.write_text(f"user default off\nuser alice on >{SECRET} ~* &* +@all\nuser mallory on >{SECRET} ~other* +@all\n")
    words = ["--port", "0", "--bind", "127.0.0.1", "--tls-port", port, "--tls-cert-file", own.cert]
    words += ["--tls-key-file", own.key, "--tls-ca-cert-file", authority.ca, "--aclfile", acl, "--save", ""]
    one = BrokerProcess(folder, binary, *words, "--dir", folder, port=port)
    try:
        yield Secured(one.start(), "rediss://127.0.0.1:{port}/0?stream={name}", _login(authority))
    finally:
        one.stop()


@contextlib.contextmanager
def mosquitto(folder: Path, authority: Authority) -> Iterator[Secured]:
    """Run Mosquitto with a list of passwords and permissions."""
    passwd = shutil.which("mosquitto_passwd")
    if passwd is None:
        raise BrokerMissingError("mosquitto is not installed: apt-get install mosquitto")
    users, acl = folder / "users", folder / "acl"

    users.write_text(f"alice:{SECRET}\nmallory:{SECRET}\n")
    subprocess.run([passwd, "-U", users], check=True, capture_output=True)
    acl.write_text("user alice\ntopic readwrite #\nuser mallory\ntopic readwrite stepwell/#\ntopic readwrite other/#\n")
    own, port = authority.issue("mqtt"), free_port()
    lines = [f"password_file {users}", f"acl_file {acl}", f"listener {port} 127.0.0.1", f"cafile {authority.ca}"]
    lines += [f"certfile {own.cert}", f"keyfile {own.key}", "require_certificate true"]
    with brokers.mosquitto(folder, lines) as broker:
        broker.port = port
        yield Secured(broker, "mqtts://127.0.0.1:{port}/{name}/{{stream}}", _login(authority))


@contextlib.contextmanager
def nats(folder: Path, authority: Authority, users: str = "") -> Iterator[Secured]:
    """Run a NATS server with users and permissions, or with other lines of its configuration in their place."""
    own = authority.issue("nats")
    users = users or (
        f'authorization {{ users: [ {{user: alice, password: "{SECRET}"}},\n'
        f'{{user: mallory, password: "{SECRET}", permissions: {{publish: "other", subscribe: "_INBOX.>"}}}} ] }}\n'
    )
    config = folder / "nats.conf"
    config.write_text(
        f'{users}\ntls {{ cert_file: "{own.cert}", key_file: "{own.key}", ca_file: "{authority.ca}", verify: true }}\n'
    )
    with brokers.nats(folder, config) as broker:
        extra = {"replace_password": lambda new: config.write_text(config.read_text().replace(SECRET, new))}
        yield Secured(broker, "nats://127.0.0.1:{port}/{name}.{{stream}}", _login(authority), extra)


@contextlib.contextmanager
def kafka(folder: Path, authority: Authority) -> Iterator[Secured]:
    """Run Tansu behind a gateway with SASL, and TLS with client certificates; it has no permissions."""
    own, port = authority.issue("kafka"), free_port()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(own.cert, own.key)
    gateway = KafkaGateway(port, context, {"alice": SECRET}, SECRET)
    with brokers.kafka(folder, advertised=port) as broker, gateway:
        gateway.target = broker.port
        broker.port = port
        yield Secured(broker, "kafkas://127.0.0.1:{port}/{name}", _login(authority), {"gateway": gateway})


@contextlib.contextmanager
def rabbitmq(folder: Path, authority: Authority) -> Iterator[Secured]:
    """Run RabbitMQ with the virtual host `plant/7`, users and permissions, on a port with TLS alone."""
    own, port = authority.issue("rabbit"), free_port()
    salt = os.urandom(4)
    hashed = base64.b64encode(salt + hashlib.sha256(salt + SECRET.encode()).digest()).decode()
    users: list[dict[str, object]] = [
        {"name": name, "password_hash": hashed, "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": []}
        for name in ("alice", "mallory", "stranger")
    ]
    rights = {"alice": (".*", ".*", ".*"), "mallory": ("", "", "other")}
    permissions = [
        {"user": user, "vhost": "plant/7", "configure": one[0], "write": one[1], "read": one[2]}
        for user, one in rights.items()
    ]
    queues: list[dict[str, object]] = [
        {"name": name, "vhost": "plant/7", "durable": True, "auto_delete": False, "arguments": {}}
        for name in ("in", "out", "other")
    ]
    definitions = folder / "definitions.json"
    definitions.write_text(
        json.dumps({"users": users, "vhosts": [{"name": "plant/7"}], "permissions": permissions, "queues": queues})
    )
    lines = [
        "listeners.tcp = none",
        f"listeners.ssl.default = 127.0.0.1:{port}",
        f"ssl_options.cacertfile = {authority.ca}",
        f"ssl_options.certfile = {own.cert}",
        f"ssl_options.keyfile = {own.key}",
        "ssl_options.verify = verify_peer",
        "ssl_options.fail_if_no_peer_cert = true",
        f"load_definitions = {definitions}",
    ]
    with brokers.rabbitmq(folder, lines, port=port) as broker:
        yield Secured(broker, "amqps://127.0.0.1:{port}/{name}?vhost=plant/7", _login(authority))
