"""`Wire`: the way to the store, whatever servers it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from service.store.cluster_wire import ClusterWire
from service.store.link import Argument
from service.store.server_wire import ServerWire
from service.store.urls import ClusterUrl, scheme_of, sentinel_pool, server_pool


class Wire(Protocol):
    """Sends commands to where their keys are.

    Attributes:
        timeout: Seconds that connecting, and one exchange, may take.
        one_stream: Whether a command may only name keys of one stream.
    """

    timeout: float
    one_stream: bool

    async def call(
        self, *commands: Sequence[Argument], timeout: float | None = None, confirm: bool = False
    ) -> list[Any]:
        """Send commands and return their replies.

        Args:
            commands: Each a command and its arguments.
            timeout: Seconds for all of them, and before that for a connection; `self.timeout` if None.
            confirm: Wait for a replica, half of the time, after the last command; each has to be a write.

        Returns:
            A reply per command. What was refused is a `RefusalError` object, what no replica confirmed an
            `Unconfirmed`. Of several servers, the replies of one that failed are the error itself.

        Raises:
            NotSentError: No connection could be had in time.
            NoReplyError: A reply is missing.
        """

    async def open(self) -> asyncio.StreamWriter:
        """Return a connection of the caller's own to one of the servers, greeted, with nothing under way.

        Raises:
            NotSentError: There is none to be had.
            TimeoutError: Not within `timeout`.
        """

    async def parts(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerWire]]:
        """Return the primaries, in a fixed order, and a name for who has what, which changes when that does.

        Args:
            fresh: Ask for them, unless that was done a moment ago; else what is known will do.

        Raises:
            NotSentError: Nobody says who they are.
        """

    async def close(self) -> None:
        """Close every connection; none is opened any more, and what is sent from then on is surely not sent."""


def open_wire(url: str, *, timeout: float) -> Wire:
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
        return ClusterWire(ClusterUrl.read(url), timeout=timeout)
    pool = sentinel_pool(url, timeout) if scheme.endswith("+sentinel") else server_pool(url, timeout)
    return ServerWire(pool, timeout=timeout)
