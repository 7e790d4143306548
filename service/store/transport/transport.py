"""`RedisTransport`: the way to the store, whatever servers it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from service.store.transport.cluster import ClusterTransport
from service.store.transport.connection import Argument
from service.store.transport.server import ServerTransport
from service.store.transport.urls import ClusterUrl, scheme_of, sentinel_pool, server_pool


class RedisTransport(Protocol):
    """Sends commands to where their keys are.

    Attributes:
        timeout: Seconds that connecting, and one exchange, may take.
        one_stream: Whether a command may only name keys of one stream.
    """

    timeout: float
    is_cluster: bool

    async def call(
        self, *commands: Sequence[Argument], timeout: float | None = None, confirm: bool = False
    ) -> list[Any]:
        """Send commands and return their replies.

        Args:
            commands: Each a command and its arguments.
            timeout: Seconds for all of them, and before that for a connection; `self.timeout` if None.
            confirm: Wait for a replica, half of the time, after the last command; each has to be a write.

        Returns:
            A reply per command. What was refused is a `CommandError` object, what no replica confirmed an
            `NotReplicated`. Of several servers, the replies of one that failed are the error itself.

        Raises:
            NotSentError: No connection could be had in time.
            NoReplyError: A reply is missing.
        """

    async def open_dedicated(self) -> asyncio.StreamWriter:
        """Return a connection of the caller's own to one of the servers, greeted, with nothing under way.

        Raises:
            NotSentError: There is none to be had.
            TimeoutError: Not within `timeout`.
        """

    async def primaries(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerTransport]]:
        """Return the primaries, in a fixed order, and a name for who has what, which changes when that does.

        Args:
            fresh: Ask for them, unless that was done a moment ago; else what is known will do.

        Raises:
            NotSentError: Nobody says who they are.
        """

    async def close(self) -> None:
        """Close every connection; none is opened any more, and what is sent from then on is surely not sent."""


def open_transport(url: str, *, timeout: float) -> RedisTransport:
    """Return the way to a store; nothing is connected yet.

    Args:
        url: `redis://`, `rediss://` or `unix://`; `redis+sentinel://host:port,host:port/service/db`;
            `redis+cluster://host:port,host:port`; the last two with `rediss` over TLS.
        timeout: Seconds that connecting, and one exchange, may take.

    Raises:
        BadStoreUrlError: The URL has another scheme or cannot be read.
    """
    scheme = scheme_of(url)
    if scheme.endswith("+cluster"):
        return ClusterTransport(ClusterUrl.read(url), timeout=timeout)
    pool = sentinel_pool(url, timeout) if scheme.endswith("+sentinel") else server_pool(url, timeout)
    return ServerTransport(pool, timeout=timeout)
