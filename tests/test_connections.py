"""What a client may hold open: heads have a time and a size, connections a number, and health is always answered."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import httpx
import pytest

from service.connections import HEAD_LIMIT
from tests.graphs import fold, write_model
from tests.processes import Service, service
from tests.servers import Server

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
WITHIN_S = 0.5
MOST = 8


@pytest.fixture(scope="module")
def small(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with little patience and room for few."""
    folder = tmp_path_factory.mktemp("small")
    write_model(folder / "models", "fold", fold)
    flags = ["--redis", shared_redis.url, "--drain-s", "0"]
    flags += ["--receive-timeout-s", str(WITHIN_S), "--max-connections", str(MOST)]
    with service(folder / "models", folder / "one", *flags) as one:
        yield one


@pytest.fixture
def alone(small: Service) -> Service:
    """The service, when every connection of the tests before is gone."""
    while "connection: close" in ask(small, GET + b"\r\n").lower():
        pass
    return small


@contextlib.contextmanager
def connection(one: Service) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", one.port), timeout=20) as sock:
        yield sock


def answer(sock: socket.socket) -> str:
    """Read until the other side closes, or one whole answer is there."""
    text = b""
    while part := sock.recv(65536):
        text += part
        head, _, body = text.partition(b"\r\n\r\n")
        length = [int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
        if length and len(body) >= length[0]:
            break
    return text.decode()


def ask(one: Service, request: bytes) -> str:
    with connection(one) as sock:
        sock.sendall(request)
        return answer(sock)


def closed_after(sock: socket.socket, parts: Sequence[bytes] = (), *, every: float = 0.1) -> float:
    """Send the parts again and again, and return the seconds until the other side closes."""
    began = time.monotonic()
    ended = threading.Event()

    def drip() -> None:
        while not ended.is_set():
            for part in parts:
                with contextlib.suppress(OSError):
                    sock.sendall(part)
                ended.wait(every)

    dripping = threading.Thread(target=drip)
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


@pytest.mark.parametrize(
    ("first", "then"),
    [(b"", ()), (GET, ()), (GET, (b"x: y\r\n",)), (b"", (b"\r\n",)), (GET + b"\r\n", (b"\r\n",)), (GET + b"\r\nG", ())],
    ids=["silent", "half a head", "a dripped head", "empty lines", "empty lines after an answer", "half a second head"],
)
def test_a_connection_without_a_whole_head_is_closed(alone: Service, first: bytes, then: tuple[bytes, ...]) -> None:
    with connection(alone) as sock:
        sock.sendall(first)
        took = closed_after(sock, then)

    assert WITHIN_S * 0.9 < took < 10


def test_an_answered_connection_is_kept(alone: Service) -> None:
    with connection(alone) as sock:
        sock.sendall(GET + b"\r\n")
        answer(sock)
        sock.settimeout(3 * WITHIN_S)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(20)
        sock.sendall(GET + b"\r\n")

        assert answer(sock).startswith("HTTP/1.1 200")


def test_a_whole_head_in_pieces_is_taken(alone: Service) -> None:
    with connection(alone) as sock:
        for piece in (b"GET /hea", b"lthz HTTP/1.1\r\nho", b"st: x\r\n", b"\r\n"):
            sock.sendall(piece)

        assert answer(sock).startswith("HTTP/1.1 200")


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize(("size", "status"), [(HEAD_LIMIT - 200, 200), (HEAD_LIMIT + 200, 413)])
def test_a_head_has_a_greatest_size(alone: Service, pieces: int, size: int, status: int) -> None:
    request = GET + b"x: " + b"y" * (size - len(GET)) + b"\r\n\r\n"
    length = len(request) // pieces + 1
    with connection(alone) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), length):
            with contextlib.suppress(ConnectionError):
                sock.sendall(request[start : start + length])
        told = answer(sock)

    assert told.startswith(f"HTTP/1.1 {status} ")
    assert ('"code":"too_large"' in told) == (status == 413)


def test_a_head_that_grows_too_long_is_not_waited_for(alone: Service) -> None:
    assert ask(alone, GET + b"x: " + b"y" * HEAD_LIMIT).startswith("HTTP/1.1 413 ")


def test_a_long_body_is_no_long_head(alone: Service) -> None:
    body = b'{"inputs": [1], "seq": 1, "nothing": "' + b"y" * 3 * HEAD_LIMIT + b'"}'
    head = b"POST /v1/models/fold/streams/long/step HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)

    assert "too_large" not in ask(alone, head + body)


def test_what_is_not_http_is_answered_as_a_problem(alone: Service) -> None:
    told = ask(alone, b"\x16\x03\x01 hello\r\n\r\n")

    assert told.startswith("HTTP/1.1 400 ")
    assert "application/problem+json" in told
    assert '"code":"bad_request"' in told


def test_too_many_connections_are_refused_but_for_health(alone: Service) -> None:
    upgrade = b"GET /v1/watch HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    upgrade += b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connection(alone)) for _ in range(MOST)]
        for sock in held:
            sock.sendall(GET + b"\r\n")
            assert answer(sock).startswith("HTTP/1.1 200")
        health, ready = ask(alone, GET + b"\r\n"), ask(alone, GET.replace(b"healthz", b"readyz") + b"\r\n")
        step = b'POST /v1/models/fold/streams/s/step HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{"inputs": [1]}'
        refused = [ask(alone, GET.replace(b"healthz", b"v1/models") + b"\r\n"), ask(alone, upgrade), ask(alone, step)]
        held[0].sendall(GET.replace(b"healthz", b"v1/models") + b"\r\n")
        kept = answer(held[0])

    assert [told[:12] for told in (health, ready, kept)] == ["HTTP/1.1 200"] * 3
    for told in refused:
        assert told.startswith("HTTP/1.1 503 ")
        assert "retry-after: " in told
        assert '"code":"overloaded"' in told


def test_what_is_not_http_is_answered_behind_the_requests_before_it(alone: Service) -> None:
    told = ask_all(alone, GET + b"\r\n" + GET + b"\r\nnothing\r\n\r\n")

    assert re.findall(r"HTTP/1\.1 (\d+) ", told) == ["200", "200", "400"]


def test_many_requests_and_the_beginning_of_another_are_no_long_head(alone: Service) -> None:
    requests = 2 * HEAD_LIMIT // len(GET)
    with connection(alone) as sock:
        sock.sendall((GET + b"\r\n") * requests + GET)
        told = sock.recv(65536)
        sock.sendall(b"connection: close\r\n\r\n")
        told += b"".join(iter(lambda: sock.recv(65536), b""))

    assert told.count(b"HTTP/1.1 200 OK") == requests + 1


def ask_all(one: Service, requests: bytes) -> str:
    """Return all that comes until the other side closes."""
    with connection(one) as sock:
        sock.sendall(requests)
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def test_refusals_are_counted(alone: Service) -> None:
    before = refusals(alone)
    ask(alone, b"nothing\r\n\r\n")

    assert refusals(alone) == before + 1


def refusals(one: Service) -> float:
    page = httpx.get(one.url + "/metrics", trust_env=False).text
    lines = [line for line in page.splitlines() if line.startswith('stepwell_refusals_total{code="bad_request"}')]
    return float(lines[0].split()[1]) if lines else 0.0
