"""`RedisTransport`: how commands reach the store, be it one server, a primary behind Sentinels, or an add-on's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import FunctionType
from typing import Any, Final, Protocol

from stepwell.store.transport.connection import Argument
from stepwell.store.transport.server import ServerTransport
from stepwell.store.transport.shard_channels import ShardChannels, ShardListener
from stepwell.store.transport.urls import BadStoreUrlError, sentinel_pool, server_pool
from stepwell_export.runtime.registered import load, registered

_OWN: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")


class RedisTransport(Protocol):
    """Sends commands to the servers that own their keys.

    Attributes:
        timeout: Seconds for connecting, and for one exchange.
        is_cluster: Whether the store is a Cluster; a command may then use keys of one stream only.
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
            confirm: After the last command, wait for half of the time until a replica confirms; each command must be a
                write.

        Returns:
            A reply per command. An error reply is a `CommandError` object, a reply that no replica confirmed a
            `NotReplicated`. With several servers, the replies of one that failed are the exception itself.

        Raises:
            NotSentError: No connection could be opened in time.
            NoReplyError: A reply is missing.
        """

    async def open_dedicated(self) -> asyncio.StreamWriter:
        """Return a connection of the caller's own to one of the servers, authenticated, with no pending command.

        Raises:
            NotSentError: No connection could be opened.
            TimeoutError: It was not opened within `timeout`.
        """

    async def primaries(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerTransport]]:
        """Return a name of the assignment of keys to primaries, which changes with it, and the primaries, sorted.

        Args:
            fresh: Query the servers, unless that was done a moment ago; otherwise the last result may be returned.

        Raises:
            NotSentError: No server returned them.
        """

    def shard_channels(self, listener: ShardListener) -> ShardChannels | None:
        """Return subscriptions to channels of single streams; None: there is one server, whose topics suffice."""

    async def close(self) -> None:
        """Close every connection; none is opened any more, and what is sent from then on is surely not sent."""


def open_transport(url: str, *, timeout: float) -> RedisTransport:
    """Return the transport for a store; nothing is connected yet.

    Args:
        url: `redis://`, `rediss://` or `unix://`; `redis+sentinel://host:port,host:port/service/db`, with
            `rediss+sentinel` over TLS; or with a scheme that an add-on registers, such as `redis+cluster`.
        timeout: Seconds for connecting, and for one exchange.

    Raises:
        BadStoreUrlError: The URL has another scheme or cannot be parsed.
        AddonError: As for `load`.
    """
    scheme = url.split("://", 1)[0]
    if scheme in _OWN:
        pool = sentinel_pool(url, timeout) if scheme.endswith("+sentinel") else server_pool(url, timeout)
        return ServerTransport(pool, timeout=timeout)
    others = registered("stepwell.stores")
    if scheme not in others:
        raise BadStoreUrlError(
            f"The store's URL starts with {scheme!r}; expected one of {', '.join((*_OWN, *others))}.",
            fix="Use for example redis://localhost:6379/0.",
        )
    transport: RedisTransport = load(others[scheme], FunctionType)(url, timeout=timeout)
    return transport
