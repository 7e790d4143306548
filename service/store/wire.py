"""`Wire`: the way to the primary of one store, telling apart what was surely not sent from what may have been done.

redis-py finds the server, opens the connection and authenticates (also through Sentinel and TLS); then a `Link` takes
the connection over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from model_export.errors import StepwellError
from service.store.link import Argument, Link, NotSentError, RefusalError

_MAX_CONNECTIONS = 64  # of redis-py's own, for what is not hot


class BadStoreUrlError(StepwellError):
    """The store's URL cannot be used."""

    code = "bad_store_url"


class Wire:
    """Connections to the primary of one store."""

    def __init__(self, url: str, *, timeout: float) -> None:
        """Prepare connections; none is opened yet.

        Args:
            url: `redis://`, `rediss://`, `unix://`, or `redis+sentinel://host:port,host:port/service/db`.
            timeout: Seconds that connecting, and one command, may take.

        Raises:
            BadStoreUrlError: The URL has another scheme or cannot be parsed.
        """
        self.timeout = timeout
        self._pool = _pool(url, timeout)
        self._shared: Link | None = None
        self._idle: list[Link] = []
        self._opening = asyncio.Lock()

    @property
    def client(self) -> Redis:
        """A redis-py client on connections of its own, for everything that is not hot."""
        return Redis(connection_pool=self._pool)

    async def call(self, *commands: Sequence[Argument], timeout: float | None = None, alone: bool = False) -> list[Any]:
        """Send commands in one write on one connection, and read their replies.

        Args:
            commands: Each a command and its arguments.
            timeout: Seconds for all of them, and before that for a connection; `self.timeout` if None.
            alone: The commands make their connection wait (`WAIT`), so no others may be behind them on it.

        Returns:
            A reply per command; a refusal is returned as a `RefusalError` object.

        Raises:
            NotSentError: No connection could be had in time.
            NoReplyError: A reply is missing; the connection is closed.
        """
        limit = self.timeout if timeout is None else timeout
        link = await (self._own_link(limit) if alone else self._shared_link(limit))
        replies = await link.call(commands, limit)
        if any(isinstance(reply, RefusalError) and reply.code == "READONLY" for reply in replies):
            link.cut("the server is a replica now")  # the next connection finds the primary
        elif alone:
            self._idle.append(link)
        return replies

    async def close(self) -> None:
        """Close every connection."""
        for link in [*self._idle, *([self._shared] if self._shared else [])]:
            link.cut("closed")
        await self._pool.aclose()

    # ---------------------------------------------------------------- connections

    async def _shared_link(self, limit: float) -> Link:
        if self._shared is not None and self._shared.is_open:
            return self._shared
        try:
            async with asyncio.timeout(limit), self._opening:
                if self._shared is None or not self._shared.is_open:
                    self._shared = await self._open()
                return self._shared
        except TimeoutError as exc:
            raise NotSentError("no connection in time") from exc

    async def _own_link(self, limit: float) -> Link:
        while self._idle:
            if (link := self._idle.pop()).is_open:
                return link
        try:
            async with asyncio.timeout(limit):
                return await self._open()
        except TimeoutError as exc:
            raise NotSentError("no connection in time") from exc

    async def _open(self) -> Link:
        connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no types here
        try:
            await connection.connect()
        except (RedisError, OSError) as exc:
            raise NotSentError(str(exc) or "no connection") from exc
        # From here on the connection is ours, and redis-py's object may go. The writer must stay: it closes its
        # transport when it is collected.
        writer, connection._reader, connection._writer = connection._writer, None, None
        return Link(writer)


def _pool(url: str, timeout: float) -> ConnectionPool:
    common: dict[str, Any] = {
        "socket_connect_timeout": timeout,
        "socket_timeout": None,  # `call` sets the limit for the whole exchange
        "retry": Retry(NoBackoff(), 0),
        "max_connections": _MAX_CONNECTIONS,
        "protocol": 2,
    }
    scheme = url.split("://", 1)[0]
    try:
        if scheme in ("redis", "rediss", "unix"):
            return BlockingConnectionPool.from_url(url, timeout=timeout, **common)
        if scheme == "redis+sentinel":
            return _sentinel_pool(url, timeout, common)
    except ValueError as exc:
        raise BadStoreUrlError(f"The store's URL cannot be read: {exc}.", fix="Give redis://host:port/0.") from exc
    raise BadStoreUrlError(
        f"The store's URL begins with {scheme!r}; expected redis, rediss, unix or redis+sentinel.",
        fix="Give for example redis://localhost:6379/0.",
    )


def _sentinel_pool(url: str, timeout: float, common: dict[str, Any]) -> ConnectionPool:
    parts = urlsplit(url)
    account, _, hosts = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    if not service or not hosts:
        raise BadStoreUrlError(
            "A Sentinel URL needs hosts and the name of the service.",
            fix="Give redis+sentinel://host:26379,host:26379/mymaster/0.",
        )
    nodes = [(host, int(port or 26379)) for host, _, port in (h.partition(":") for h in hosts.split(","))]
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types here
        nodes, sentinel_kwargs={"socket_connect_timeout": timeout, "socket_timeout": timeout}
    )
    client = sentinel.master_for(
        service, db=int(db or 0), username=unquote(user) or None, password=unquote(password) or None, **common
    )
    pool: ConnectionPool = client.connection_pool
    return pool
