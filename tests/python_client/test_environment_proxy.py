"""The client for threads uses the proxy that the environment names, as httpx2 does for the client for asyncio."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpcore2
import httpx2
import pytest

from stepwell_client import AsyncClient, Client, ClientError
from stepwell_client.environment_proxy import environment_proxy

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
PROXY = "http://proxy.test:3128"

EXCLUDED = [
    ("http://10.1.2.3:8000", "*"),
    ("http://10.1.2.3:8000", "10.1.2.3"),
    ("http://10.1.2.3:8000", "10.1.2.3:8000"),
    ("http://10.1.2.3:8000", "10.0.0.0/8"),
    ("http://10.1.2.3:8000", "other.test, 10.1.0.0/16"),
    ("http://10.1.2.3:8000", "http://10.1.2.3"),
    ("http://[fd00::1]:8000", "fd00::1"),
    ("http://[fd00::1]:8000", "[fd00::1]"),
    ("http://[fd00::1]:8000", "fd00::/8"),
    ("http://localhost:8000", "LOCALHOST"),
    ("http://steps.test", "steps.test"),
    ("http://a.steps.test", "steps.test"),
    ("http://a.steps.test", ".steps.test"),
    ("http://a.steps.test", "*.steps.test"),
    ("http://steps.test:8000", "steps.test:8000"),
]
PROXIED = [
    ("http://10.1.2.3:8000", ""),
    ("http://10.1.2.3:8000", "10.1.2.4"),
    ("http://10.1.2.3:8000", "10.1.2.3:80"),
    ("http://10.1.2.3:8000", "10.2.0.0/16"),
    ("http://10.1.2.3:8000", "fd00::/8"),
    ("http://10.1.2.3:8000", "https://10.1.2.3"),
    ("http://10.1.2.3:8000", "10.1.2.3/33, :, ://, ["),
    ("http://[fd00::1]:8000", "10.0.0.0/8"),
    ("http://a.localhost:8000", "localhost"),
    ("http://steps.test", ".steps.test"),
    ("http://steps.test", "*.steps.test"),
    ("http://othersteps.test", "steps.test"),
    ("http://steps.test:8000", "steps.test:80"),
    ("http://a.steps.test", "http://steps.test"),
    ("http://steps.test", "steps.test/8"),
]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_what_no_proxy_names_is_reached_directly_and_what_it_does_not_name_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", PROXY)
    for expected, cases in ((None, EXCLUDED), (PROXY, PROXIED)):
        for url, no_proxy in cases:
            monkeypatch.setenv("NO_PROXY", no_proxy)

            assert environment_proxy(httpx2.URL(url)) == expected, (url, no_proxy)


def test_a_scheme_has_its_own_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "secure.test:3128")

    assert environment_proxy(httpx2.URL("https://steps.test")) == "http://secure.test:3128"
    assert environment_proxy(httpx2.URL("http://steps.test")) is None


class Recording:
    """An HTTP proxy that answers each request with 404, and keeps the first line of the last one."""

    def __init__(self) -> None:
        self.request = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:secret@127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            with near:
                self.request = near.recv(65536)
                near.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture
def recording() -> Iterator[Recording]:
    made = Recording()
    yield made
    made.close()


def seen_by_the_proxy(recording: Recording, url: str) -> list[Any]:
    """The lines of a request that the proxy gets of the client for threads, and of the one for asyncio."""

    async def describe() -> None:
        async with AsyncClient(url, timeout=2) as client:
            await client.model("fold").describe()

    def lines() -> list[bytes]:
        found, recording.request = recording.request.split(b"\r\n"), b""
        return sorted(
            line for line in found if line.lower().startswith((b"get ", b"host:", b"proxy-auth", b"connect "))
        )

    with Client(url, timeout=2) as client, pytest.raises(ClientError):
        client.model("fold").describe()
    by_threads = lines()
    with pytest.raises(ClientError):
        asyncio.run(describe())
    return [by_threads, lines()]


def test_both_clients_send_the_same_to_a_proxy(monkeypatch: pytest.MonkeyPatch, recording: Recording) -> None:
    monkeypatch.setenv("HTTP_PROXY", recording.url)
    for url, no_proxy in PROXIED:
        if "10.1" in url or "steps" in url:
            monkeypatch.setenv("NO_PROXY", no_proxy)

            by_threads, by_asyncio = seen_by_the_proxy(recording, url)

            assert by_threads == by_asyncio, (url, no_proxy)
            assert [line.partition(b" ")[0] for line in by_threads] == [b"GET", b"Host:", b"Proxy-Authorization:"]


def test_both_clients_ask_a_proxy_for_a_tunnel_to_https(monkeypatch: pytest.MonkeyPatch, recording: Recording) -> None:
    monkeypatch.setenv("HTTPS_PROXY", recording.url)

    by_threads, by_asyncio = seen_by_the_proxy(recording, "https://steps.test")

    assert by_threads == by_asyncio
    assert b"CONNECT steps.test:443 HTTP/1.1" in by_threads


def test_each_error_of_httpcore2_has_one_of_httpx2() -> None:
    """So the client for threads raises what httpx2's own transport would."""
    for name in set(httpcore2.__all__) - {"ConnectionNotAvailable"}:  # that one the pool handles
        kind = getattr(httpcore2, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(getattr(httpx2, name), httpx2.TransportError)
