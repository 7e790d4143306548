"""Stores over TLS: a single server, a Cluster and Sentinels; untrusted certificates are refused."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwell.commands.store_permissions import check_permissions
from stepwell.service_addon import addon_classes
from stepwell.store.checks.safety import UnsafeStoreError, read_server_info
from tests.engine.harness import step, worker
from tests.graphs import fold, write_models
from tests.processes import free_port
from tests.servers import Server, server, servers
from tests.store.clusters import SLOTS, Node, port_with_bus, sentinels
from tests.store.test_laws import SOON
from tests.store.transport.test_connection import wire

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def supports_tls(binary: Path, folder: Path) -> bool:
    """Return whether a server was built with TLS."""
    try:
        with server(folder / "probe", "--tls-port", str(free_port()), *tls_options(folder), binary=binary):
            return True
    except RuntimeError:
        return False


def tls_options(folder: Path) -> tuple[str, ...]:
    """Return the options of a server with its own certificate, which the first call creates."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    if not cert.exists():
        request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        made = [*request, "-addext", NAMES, "-keyout", str(key), "-out", str(cert)]
        subprocess.run(made, check=True, capture_output=True)
    files = ("--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert))
    return (*files, "--tls-auth-clients", "no")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server binary with TLS support."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    for one in servers().values():
        if supports_tls(one, tmp_path_factory.mktemp("t")):
            return one
    pytest.skip("none of the servers here was built with TLS")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


@pytest.fixture
def tls_server(short_path: Path, binary: Path) -> Iterator[tuple[Server, int]]:
    """A server that accepts TLS only, and its port."""
    port = free_port()
    with server(short_path / "r", "--tls-port", str(port), *tls_options(short_path), binary=binary) as one:
        yield one, port


async def first_step(url: str, folder: Path) -> int:
    """Start an engine on the store and return the step that its first request reaches."""
    async with worker(url, folder) as engine:
        await read_server_info(engine.store, timeout=SOON)
        await check_permissions(engine.store, addon_classes())
        return (await engine.steps.advance(step("a", 1, seq=1))).step


async def test_a_server_over_tls_can_be_used(tls_server: tuple[Server, int], short_path: Path, folder: Path) -> None:
    _, port = tls_server
    url, big = f"rediss://localhost:{port}/0?ssl_ca_certs={short_path}/cert.pem", b"x" * 500_000

    assert await first_step(url, folder) == 1
    async with wire(url) as one:
        assert await asyncio.gather(*(one.call(("ECHO", big)) for _ in range(5))) == [[big]] * 5


async def test_an_untrusted_certificate_is_refused(tls_server: tuple[Server, int], folder: Path) -> None:
    _, port = tls_server

    with pytest.raises(UnsafeStoreError, match=r"(?i)certificate"):
        async with worker(f"rediss://localhost:{port}/0", folder) as engine:
            await read_server_info(engine.store, timeout=0)


async def test_a_connection_without_tls_to_a_tls_server_is_reported(
    tls_server: tuple[Server, int], folder: Path
) -> None:
    _, port = tls_server

    with pytest.raises(UnsafeStoreError, match="The store cannot be used"):
        async with worker(f"redis://localhost:{port}/0", folder, timeout=0.5) as engine:
            await read_server_info(engine.store, timeout=0)


async def test_a_cluster_over_tls_can_be_used(short_path: Path, binary: Path, folder: Path) -> None:
    port = port_with_bus()
    tls = ("--tls-port", str(port), "--tls-cluster", "yes", "--port", "0", *tls_options(short_path))
    node = Node(short_path / "c", *tls, binary=binary)
    node.start()
    try:
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS))
        options = f"ssl_ca_certs={short_path}/cert.pem"
        assert await first_step(f"rediss+cluster://localhost:{port}?{options}", folder) == 1
    finally:
        node.kill()


async def test_sentinels_over_tls_can_be_used(
    tls_server: tuple[Server, int], short_path: Path, binary: Path, folder: Path
) -> None:
    _, port = tls_server
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
        assert await first_step(url, folder) == 1
