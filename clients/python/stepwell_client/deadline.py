"""A total time limit for one HTTP request of a thread.

httpx2 limits each read and each write separately, so a response that arrives byte by byte could block a caller without
limit. Asyncio has `asyncio.timeout` for this; for threads the limit is enforced in the streams of httpx2's network
backend, where httpx2 waits.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2

_PIECE = 16 * 1024
"""Bytes per write: the deadline is checked before each, so a slow peer can exceed it by one write."""


class Deadline(threading.local):
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


def limit(client: httpx2.Client, deadline: Deadline) -> None:
    """Apply a deadline, set by each thread for its own request, to all requests of a client."""
    # httpx2 has no option for the network backend of its pools; a test with a byte-by-byte response covers this
    for transport in (client._transport, *client._mounts.values()):
        if transport is not None:  # None: an address that the environment excludes from proxying
            pool: Any = transport._pool  # type: ignore[attr-defined]
            pool._network_backend = _Backend(pool._network_backend, deadline)


class _Backend(httpcore2.NetworkBackend):
    """Opens connections whose operations end at the deadline."""

    def __init__(self, backend: httpcore2.NetworkBackend, deadline: Deadline) -> None:
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

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
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


def _addresses(host: str, port: int) -> list[str]:
    """Return a host's addresses, or the host itself if it does not resolve: connecting then raises httpx2's error."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [host]
    return [str(address[0]) for *_, address in infos]
