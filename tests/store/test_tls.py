"""Stores over TLS: one server, a Cluster, Sentinels; certificates that nobody knows are refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.store.facts import UnsafeStoreError, read_facts
from service.store.rights import demand_rights
from tests.engine.harness import step, worker
from tests.graphs import fold, write_models
from tests.processes import free_port
from tests.servers import Server, server, servers
from tests.store.clusters import SLOTS, Node, port_with_a_bus, sentinels
from tests.store.test_laws import SOON

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def speaks_tls(binary: Path, folder: Path) -> bool:
    """Whether a server was built with TLS."""
    try:
        with server(folder / "probe", "--tls-port", str(free_port()), *certified(folder), binary=binary):
            return True
    except RuntimeError:
        return False


def certified(folder: Path) -> tuple[str, ...]:
    """Options of a server with a certificate of its own; made at the first call."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    if not cert.exists():
        request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        made = [*request, "-addext", NAMES, "-keyout", str(key), "-out", str(cert)]
        subprocess.run(made, check=True, capture_output=True)
    files = ("--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert))
    return (*files, "--tls-auth-clients", "no")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server that speaks TLS."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    for one in servers().values():
        if speaks_tls(one, tmp_path_factory.mktemp("t")):
            return one
    pytest.skip("none of the servers here was built with TLS")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


@pytest.fixture
def encrypted(short_path: Path, binary: Path) -> Iterator[tuple[Server, int]]:
    """A server that is reached over TLS alone, and its port."""
    port = free_port()
    with server(short_path / "r", "--tls-port", str(port), *certified(short_path), binary=binary) as one:
        yield one, port


async def steps_on(url: str, folder: Path) -> int:
    """Whether a worker starts and steps on a store: the step that it reached."""
    async with worker(url, folder) as engine:
        await read_facts(engine.store, patience=SOON)
        await demand_rights(engine.store)
        return (await engine.advance(step("a", 1, seq=1))).step


async def test_a_server_over_tls_is_used(encrypted: tuple[Server, int], short_path: Path, folder: Path) -> None:
    _, port = encrypted

    assert await steps_on(f"rediss://localhost:{port}/0?ssl_ca_certs={short_path}/cert.pem", folder) == 1


async def test_a_certificate_that_nobody_vouches_for_is_refused(encrypted: tuple[Server, int], folder: Path) -> None:
    _, port = encrypted

    with pytest.raises(UnsafeStoreError, match=r"(?i)certificate"):
        async with worker(f"rediss://localhost:{port}/0", folder) as engine:
            await read_facts(engine.store, patience=0)


async def test_a_server_that_is_asked_without_tls_is_told(encrypted: tuple[Server, int], folder: Path) -> None:
    _, port = encrypted

    with pytest.raises(UnsafeStoreError, match="The store does not serve us"):
        async with worker(f"redis://localhost:{port}/0", folder, timeout=0.5) as engine:
            await read_facts(engine.store, patience=0)


async def test_a_cluster_over_tls_is_used(short_path: Path, binary: Path, folder: Path) -> None:
    port = port_with_a_bus()
    tls = ("--tls-port", str(port), "--tls-cluster", "yes", "--port", "0", *certified(short_path))
    node = Node(short_path / "c", *tls, binary=binary)
    node.start()
    try:
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS))
        options = f"ssl_ca_certs={short_path}/cert.pem"
        assert await steps_on(f"rediss+cluster://localhost:{port}?{options}", folder) == 1
    finally:
        node.kill()


async def test_sentinels_over_tls_are_used(
    encrypted: tuple[Server, int], short_path: Path, binary: Path, folder: Path
) -> None:
    _, port = encrypted
    guard = free_port()
    tls = f"""
        tls-port {guard}
        tls-replication yes
        tls-cert-file {short_path}/cert.pem
        tls-key-file {short_path}/key.pem
        tls-ca-cert-file {short_path}/cert.pem
        tls-auth-clients no
    """
    with sentinels(short_path, port, options=tls, binary=binary):
        url = f"rediss+sentinel://localhost:{guard}/pumps/0?ssl_ca_certs={short_path}/cert.pem"
        assert await steps_on(url, folder) == 1
