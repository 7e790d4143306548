"""Any bytes on a connection, HTTP or WebSocket, are answered or end it, and cause no internal error."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.addons.fast_path.both_paths import chunked, read_to_end, request, statuses
from tests.api.running import Service, running_service
from tests.fuzz.test_readers import mutated
from tests.graphs import fold, write_models
from tests.servers import Server

FEW = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STEP = b'{"inputs": [5], "seq": 1}'
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    b"GET /v1/models/fold/%b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)
REQUESTS = [
    request(STEP),
    request(STEP, "/v1/models/fold/streams/s/step?version=1", "Idempotency-Key: k", "Accept: application/msgpack"),
    request(b'{"streams": ["a"], "inputs": [[1]]}', "/v1/models/fold/step"),
    request(b'{"inputs": [[1], [2]], "return": "last"}', "/v1/models/fold/streams/s/steps"),
    request(b"", "/v1/models/fold/streams/s/reset"),
    request(b"", "/v1/models/fold/streams?prefix=a&limit=5&cursor=W10", method="GET", length=None),
    chunked(STEP),
    UPGRADE % (b"feed", KEY),
]


def frame(message: bytes, first: int = 0x81) -> bytes:
    """Return a client's frame, masked with zeros."""
    length = bytes([0x80 | len(message)]) if len(message) < 126 else b"\xfe" + len(message).to_bytes(2)
    return bytes([first]) + length + bytes(4) + message


FRAMES = [
    frame(STEP),
    frame(b'{"stream": "a", "inputs": [1], "id": 1}') * 3,
    frame(b'{"streams": ["a", "b"], "inputs": [[1], [2]]}'),
    frame(STEP[:9], 0x01) + frame(b"", 0x89) + frame(STEP[9:], 0x80),
    frame(STEP + b" " * 200),
    frame(b"\x03\xe8", 0x88),
]


class ErrorLog(logging.Handler):
    """Keeps the error records of the log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.threadName != "jwt-keys":  # a thread left by another test's service
            self.seen.append(self.format(record))


@pytest.fixture(scope="module")
def service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = write_models(tmp_path_factory.mktemp("models"), fold)
    with running_service(shared_redis.url, folder, lane=True, receive_timeout_s=1, max_body_bytes=100_000) as one:
        yield one


@pytest.fixture
def errors() -> Iterator[ErrorLog]:
    handler = ErrorLog()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def response_to(service: Service, data: bytes, *, opening: bytes = b"") -> bytes:
    """Return everything that the service sends in response to these bytes."""
    with service.open_connection() as sock:
        try:
            if opening:
                sock.sendall(opening)
                while b"\r\n\r\n" not in sock.recv(65536):
                    pass
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # already closed
            return b""
        return read_to_end(sock)


@FEW
@given(parts=st.lists(st.one_of(mutated(REQUESTS), mutated(REQUESTS), st.binary(max_size=100)), min_size=1, max_size=3))
def test_any_http_bytes_are_answered_or_close_the_connection(
    service: Service, errors: ErrorLog, parts: list[bytes]
) -> None:
    answer = response_to(service, b"".join(parts))

    assert 500 not in statuses(answer), answer
    assert not errors.seen, "\n".join(errors.seen)


@FEW
@given(
    parts=st.lists(st.one_of(mutated(FRAMES), mutated(FRAMES), st.binary(max_size=100)), min_size=1, max_size=3),
    path=st.sampled_from([b"feed", b"streams/w/feed"]),
)
def test_any_feed_bytes_are_answered_or_close_the_connection(
    service: Service, errors: ErrorLog, parts: list[bytes], path: bytes
) -> None:
    answer = response_to(service, b"".join(parts), opening=UPGRADE % (path, KEY))

    assert b'"internal"' not in answer, answer
    assert not errors.seen, "\n".join(errors.seen)
