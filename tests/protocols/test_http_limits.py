"""Limits of connections: time and size of a request head, and their number, which excludes health checks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from stepwell.protocols.http_limits import HEAD_LIMIT
from tests.api.running import Service, running_service
from tests.graphs import fold, write_models
from tests.servers import Server

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
WITHIN_S = 0.5  # of `hasty_service`
PATIENCE_S = 60
MOST = 8


@pytest.fixture(scope="module")
def limited_service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with few connections."""
    folder = write_models(tmp_path_factory.mktemp("small"), fold)
    with running_service(shared_redis.url, folder, max_connections=MOST) as one:
        yield one


@pytest.fixture(scope="module")
def hasty_service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a short timeout."""
    folder = write_models(tmp_path_factory.mktemp("hasty"), fold)
    with running_service(shared_redis.url, folder, receive_timeout_s=WITHIN_S) as one:
        yield one


@pytest.fixture
def idle_service(limited_service: Service) -> Service:
    """The service, after all connections of earlier tests are closed."""
    while "connection: close" in exchange(limited_service, GET + b"\r\n").lower():
        pass
    return limited_service


@contextlib.contextmanager
def connection(one: Service) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", one.port), timeout=PATIENCE_S) as sock:
        yield sock


def read_response(sock: socket.socket) -> str:
    """Read until the server closes the connection, or one whole response has arrived."""
    text = b""
    while part := sock.recv(65536):
        text += part
        head, _, body = text.partition(b"\r\n\r\n")
        length = [int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
        if length and len(body) >= length[0]:
            break
    return text.decode()


def exchange(one: Service, request: bytes) -> str:
    with connection(one) as sock:
        sock.sendall(request)
        return read_response(sock)


def seconds_until_closed(sock: socket.socket, parts: Sequence[bytes] = (), *, every: float = 0.1) -> float:
    """Send the parts repeatedly, and return the seconds until the server closes the connection."""
    began = time.monotonic()
    ended = threading.Event()

    def send_slowly() -> None:
        while not ended.is_set():
            for part in parts:
                with contextlib.suppress(OSError):
                    sock.sendall(part)
                ended.wait(every)

    dripping = threading.Thread(target=send_slowly)
    if parts:
        dripping.start()
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass
    took = time.monotonic() - began
    ended.set()
    if parts:
        dripping.join()
    return took


INCOMPLETE: dict[str, tuple[bytes, tuple[bytes, ...]]] = {
    "silent": (b"", ()),
    "half a head": (GET, ()),
    "a dripped head": (GET, (b"x: y\r\n",)),
    "empty lines": (b"", (b"\r\n",)),
    "empty lines after an answer": (GET + b"\r\n", (b"\r\n",)),
    "half a second head": (GET + b"\r\nG", ()),
}


def test_a_connection_without_a_complete_head_is_closed(hasty_service: Service) -> None:
    def seconds(first: bytes, then: tuple[bytes, ...]) -> float:
        with connection(hasty_service) as sock:
            sock.sendall(first)
            return seconds_until_closed(sock, then)

    with ThreadPoolExecutor() as at_once:
        took = dict(zip(INCOMPLETE, at_once.map(lambda sent: seconds(*sent), INCOMPLETE.values()), strict=True))

    assert min(took.values()) > WITHIN_S * 0.9, took


def test_an_idle_connection_is_kept_after_a_response(hasty_service: Service) -> None:
    with connection(hasty_service) as sock:
        sock.sendall(GET + b"\r\n")
        read_response(sock)
        sock.settimeout(3 * WITHIN_S)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(PATIENCE_S)
        sock.sendall(GET + b"\r\n")

        assert read_response(sock).startswith("HTTP/1.1 200")


def test_the_size_of_a_head_is_limited(idle_service: Service) -> None:
    """However it arrives, and before it is complete."""
    for size, status in ((HEAD_LIMIT - 200, 200), (HEAD_LIMIT + 200, 413)):
        request = GET + b"x: " + b"y" * (size - len(GET)) + b"\r\n\r\n"
        for pieces in (1, 7):
            length = len(request) // pieces + 1
            with connection(idle_service) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start in range(0, len(request), length):
                    with contextlib.suppress(ConnectionError):
                        sock.sendall(request[start : start + length])
                response = read_response(sock)

            assert response.startswith(f"HTTP/1.1 {status} "), (size, pieces)
            assert ('"code":"too_large"' in response) == (status == 413)
    assert exchange(idle_service, GET + b"x: " + b"y" * HEAD_LIMIT).startswith("HTTP/1.1 413 ")


def test_a_large_body_does_not_count_as_head(idle_service: Service) -> None:
    body = b'{"inputs": [1], "seq": 1, "nothing": "' + b"y" * 3 * HEAD_LIMIT + b'"}'
    head = b"POST /v1/models/fold/streams/long/step HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)

    assert "too_large" not in exchange(idle_service, head + body)


def test_invalid_http_is_answered_with_a_problem_and_counted(idle_service: Service) -> None:
    before = rejections(idle_service)
    response = exchange(idle_service, b"\x16\x03\x01 hello\r\n\r\n")

    assert response.startswith("HTTP/1.1 400 ")
    assert "application/problem+json" in response
    assert '"code":"bad_request"' in response
    assert rejections(idle_service) == before + 1


def test_too_many_connections_are_rejected_except_for_health_checks(idle_service: Service) -> None:
    upgrade = b"GET /v1/watch HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    upgrade += b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connection(idle_service)) for _ in range(MOST)]
        for sock in held:
            sock.sendall(GET + b"\r\n")
            assert read_response(sock).startswith("HTTP/1.1 200")
        health, ready = (
            exchange(idle_service, GET + b"\r\n"),
            exchange(idle_service, GET.replace(b"healthz", b"readyz") + b"\r\n"),
        )
        step = b'POST /v1/models/fold/streams/s/step HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{"inputs": [1]}'
        refused = [
            exchange(idle_service, GET.replace(b"healthz", b"v1/models") + b"\r\n"),
            exchange(idle_service, upgrade),
            exchange(idle_service, step),
        ]
        held[0].sendall(GET.replace(b"healthz", b"v1/models") + b"\r\n")
        kept = read_response(held[0])

    assert [response[:12] for response in (health, ready, kept)] == ["HTTP/1.1 200"] * 3
    for response in refused:
        assert response.startswith("HTTP/1.1 503 ")
        assert "retry-after: " in response
        assert '"code":"overloaded"' in response


def test_pipelined_requests_do_not_count_as_one_head(idle_service: Service) -> None:
    requests = 2 * HEAD_LIMIT // len(GET)
    with connection(idle_service) as sock:
        sock.sendall((GET + b"\r\n") * requests + GET)
        response = sock.recv(65536)
        sock.sendall(b"connection: close\r\n\r\n")
        response += b"".join(iter(lambda: sock.recv(65536), b""))

    assert response.count(b"HTTP/1.1 200 OK") == requests + 1


def rejections(one: Service) -> float:
    page = httpx2.get(f"http://127.0.0.1:{one.port}/metrics", trust_env=False, timeout=30).text
    lines = [line for line in page.splitlines() if line.startswith('stepwell_refusals_total{code="bad_request"}')]
    return float(lines[0].split()[1]) if lines else 0.0
