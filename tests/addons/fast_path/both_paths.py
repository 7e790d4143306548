"""Two services that differ only in the path of requests, and raw requests to both."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.api.running import Service

LAST = b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
"""A request that closes the connection after the responses to all earlier ones."""

UPGRADE = (
    b"GET /v1/models/fold/feed HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

_DATE = re.compile(rb"\r\ndate: [^\r]*")
_STATE_ID = re.compile(
    rb"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{21}[AQgw]"
)  # 16 bytes; no other text in the responses matches


@dataclass
class BothPaths:
    """The same service twice: with the fast path, and with the declared routes only."""

    lane: Service
    declared: Service

    def answer(self, *parts: bytes) -> bytes:
        """Send the parts to both services, check that the responses are equal, and return them."""
        answer, lane = responses_of(self.declared, parts), responses_of(self.lane, parts)
        assert lane == answer, f"the lane answers {lane!r}, the declared route {answer!r}, to {parts!r}"
        return answer


def responses_of(service: Service, parts: Iterable[bytes]) -> bytes:
    """Return a service's response bytes to some parts, without what differs between services."""
    with connected(service) as sock:
        with contextlib.suppress(OSError):  # the service may have closed the connection already
            for part in parts:
                sock.sendall(part)
        text = read_to_end(sock)
    return _STATE_ID.sub(b"STATE", _DATE.sub(b"", text))


@contextlib.contextmanager
def connected(service: Service) -> Iterator[socket.socket]:
    with service.open_connection() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


def read_to_end(sock: socket.socket) -> bytes:
    """Read until the other side closes the connection."""
    text = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            text += part
    return text


def request(
    body: bytes,
    path: str = "/v1/models/fold/streams/s/step",
    *headers: str,
    method: str = "POST",
    version: str = "1.1",
    length: str | None = "",
) -> bytes:
    """Return a request; `length` is the Content-Length header, "" for the true length, None for no header."""
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length or len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(body: bytes, path: str = "/v1/models/fold/streams/s/step", *headers: str, size: int = 7) -> bytes:
    """Return a request with a chunked body."""
    head = request(b"", path, "Transfer-Encoding: chunked", *headers, length=None)
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def split(data: bytes, ends: Sequence[int]) -> list[bytes]:
    """Return data in parts that end at the given offsets."""
    ends = sorted({place % (len(data) + 1) for place in ends} | {len(data)})
    return [part for start, end in zip([0, *ends], ends, strict=False) if (part := data[start:end])]


def statuses(text: bytes) -> list[int]:
    """Return the statuses of responses in order."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", text)]
