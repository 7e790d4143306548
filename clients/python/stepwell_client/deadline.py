"""`DeadlineTransport`: a total time limit for one HTTP request of a thread.

httpx2 limits each read and each write separately, so a response that arrives byte by byte could block a caller without
limit. Asyncio has `asyncio.timeout` for this; for threads the limit is enforced in the network backend of httpcore2's
connection pool, where httpx2 waits.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpcore2
import httpx2

from stepwell_client.wire.formats import EVENT_STREAM

_PIECE = 16 * 1024
"""Bytes per write: the deadline is checked before each, so a slow peer can exceed it by one write."""

_ERRORS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.UnsupportedProtocol,
)
"""What httpcore2 raises for a request, and classes of it; httpx2 has an error of the same name for each."""


class DeadlineTransport(httpx2.BaseTransport):
    """Sends requests; the `read` timeout of each limits its whole exchange. Threads may share it."""

    def __init__(self, limits: httpx2.Limits, *, socket: str | None = None, proxy: str | None = None) -> None:
        """Create it; nothing is connected yet.

        Args:
            limits: Limits of the connections.
            socket: The path of the unix socket to connect to; None: TCP.
            proxy: The URL of an HTTP or SOCKS proxy; None: connect directly.
        """
        self._deadline = _Deadline()
        options: dict[str, Any] = {
            "ssl_context": httpx2.create_ssl_context(),
            "max_connections": limits.max_connections,
            "max_keepalive_connections": limits.max_keepalive_connections,
            "keepalive_expiry": limits.keepalive_expiry,
            "network_backend": _Backend(httpcore2.SyncBackend(), self._deadline),
        }
        self._pool: httpcore2.ConnectionPool
        if proxy is None:
            self._pool = httpcore2.ConnectionPool(uds=socket, **options)
        else:
            to = httpx2.Proxy(proxy)
            kind = httpcore2.SOCKSProxy if to.url.scheme.startswith("socks") else httpcore2.HTTPProxy
            self._pool = kind(proxy_url=_url(to.url), proxy_auth=to.raw_auth, **options)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read its whole response; of a stream of events, the head.

        Raises:
            httpx2.TransportError: There is no response, or not in time.
        """
        timeout = request.extensions["timeout"]["read"]
        self._deadline.at = time.monotonic() + timeout
        assert isinstance(request.stream, httpx2.SyncByteStream)
        sent = httpcore2.Request(
            request.method,
            _url(request.url),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _translated_errors():
            response = self._pool.handle_request(sent)
            if request.headers.get("accept") == EVENT_STREAM:
                events = _Events(response, self._deadline, timeout)
                return httpx2.Response(response.status, headers=response.headers, stream=events)
            with closing(response):
                body = response.read()
        return httpx2.Response(response.status, headers=response.headers, stream=httpx2.ByteStream(body))

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except _ERRORS as exc:
        raise getattr(httpx2, type(exc).__name__)(str(exc)) from exc


class _Events(httpx2.SyncByteStream):
    """The body of a stream of events; the deadline begins anew with each part of it."""

    def __init__(self, response: httpcore2.Response, deadline: _Deadline, timeout: float) -> None:
        self._response = response
        self._deadline = deadline
        self._timeout = timeout

    def __iter__(self) -> Iterator[bytes]:
        parts = self._response.iter_stream()
        with _translated_errors():
            while True:
                self._deadline.at = time.monotonic() + self._timeout
                part = next(parts, None)
                if part is None:
                    return
                yield part

    def close(self) -> None:
        self._response.close()


class _Deadline(threading.local):
    """The deadline of the current thread's request.

    Attributes:
        at: Seconds of `time.monotonic`.
    """

    at = math.inf

    def left(self, error: type[Exception]) -> float:
        """Return the seconds until the deadline.

        Raises:
            error: The deadline has passed.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise error("The time for the whole call is over")
        return left


class _Backend(httpcore2.NetworkBackend):
    """Opens connections whose operations end at the deadline."""

    def __init__(self, backend: httpcore2.NetworkBackend, deadline: _Deadline) -> None:
        self._backend = backend
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        refused: Exception | None = None
        addresses = _addresses(host, port)
        for n, address in enumerate(addresses):  # httpcore2 would give each the whole timeout
            # an address that drops packets, as of a network without IPv6, leaves time for the others
            share = self._deadline.left(httpcore2.ConnectTimeout) / (len(addresses) - n)
            try:
                opened = self._backend.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                refused = exc
            else:
                return _Stream(opened, self._deadline)
        assert refused is not None
        raise refused

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.NetworkStream:
        left = self._deadline.left(httpcore2.ConnectTimeout)
        return _Stream(self._backend.connect_unix_socket(path, left, socket_options), self._deadline)

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    """A connection whose operations all end at the deadline; it replaces httpx2's own timeouts."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._stream.write(buffer[start : start + _PIECE], self._deadline.left(httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        left = self._deadline.left(httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _url(url: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _addresses(host: str, port: int) -> list[str]:
    """Return a host's addresses, or the host itself if it does not resolve: connecting then raises httpx2's error."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [host]
    return [str(address[0]) for *_, address in infos]
