"""Commands to one server of the Redis protocol, telling apart what was surely not sent from what may have been done.

redis-py opens, authenticates and checks the connections (also through Sentinel); the commands of the hot path are
written and read on them directly, which is several times cheaper than its client object.
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
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from model_export.errors import StepwellError

Argument = str | bytes | int
_MAX_CONNECTIONS = 64


class NotSentError(Exception):
    """No connection: the command was surely not executed."""


class NoReplyError(Exception):
    """The command was sent and no reply came: it may have been executed."""


class BadStoreUrlError(StepwellError):
    """The store's URL cannot be used."""

    code = "bad_store_url"


class Wire:
    """A pool of connections to the primary of one store."""

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

    @property
    def client(self) -> Redis:
        """A redis-py client on the same connections, for everything that is not hot."""
        return Redis(connection_pool=self._pool)

    async def call(self, *commands: Sequence[Argument], timeout: float | None = None) -> list[Any]:
        """Send commands in one write on one connection, and read their replies.

        Args:
            commands: Each a command and its arguments.
            timeout: Seconds for all of them; `self.timeout` if None.

        Returns:
            A reply per command; an error reply is returned as an exception object.

        Raises:
            NotSentError: No connection could be had in time.
            NoReplyError: A reply is missing; the connection is closed.
        """
        limit = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                connection: Any = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py's decorator
        except (RedisError, OSError, TimeoutError) as exc:
            raise NotSentError(str(exc) or "no connection in time") from exc
        healthy = False
        try:
            async with asyncio.timeout(limit):
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                replies = [await _reply(connection) for _ in commands]
            healthy = True
        except (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError) as exc:
            raise NoReplyError(str(exc) or "no reply in time") from exc
        finally:
            if not healthy:  # a late reply must never be taken for the next command's
                await connection.disconnect(nowait=True)
            await self._pool.release(connection)
        return replies

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except (ResponseError, BusyLoadingError) as exc:  # the latter is a ConnectionError to redis-py, and a reply to us
        return exc


def _pool(url: str, timeout: float) -> ConnectionPool:
    common: dict[str, Any] = {
        "socket_connect_timeout": timeout,
        "socket_timeout": None,  # `call` sets the limit for the whole exchange
        "retry": Retry(NoBackoff(), 0),
        "max_connections": _MAX_CONNECTIONS,
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
