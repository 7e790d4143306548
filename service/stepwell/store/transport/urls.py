"""Store URLs: parsing them, and redis-py's connection pools for their servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from stepwell_export.runtime.errors import StepwellError

Address = tuple[str, int]
"""Host and port."""

_SENTINEL = "redis+sentinel://host:26379,host:26379/mymaster/0"
_SENTINEL_TIMEOUT_S = 0.5  # a dead Sentinel must leave time to query the others


class BadStoreUrlError(StepwellError):
    """The store's URL cannot be used."""

    code = "bad_store_url"


def server_pool(url: str, timeout: float) -> ConnectionPool:
    """Return the pool of one server: `redis://`, `rediss://` or `unix://`.

    Raises:
        BadStoreUrlError: It cannot be parsed.
    """
    try:
        pool = ConnectionPool.from_url(url, **_common(timeout))
        # This opens no connection, but raises on an unknown option.
        pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no types here
    except (ValueError, TypeError) as exc:
        raise BadStoreUrlError(f"The store's URL cannot be parsed: {exc}.", fix="Use redis://host:port/0.") from exc
    return pool


def sentinel_pool(url: str, timeout: float) -> ConnectionPool:
    """Return the pool of the primary that Sentinels report: `redis+sentinel://user:password@host:port,host/service/db`.

    `rediss+sentinel` uses TLS for the Sentinels and the servers. Options follow `?`, as in `rediss://`; among them the
    account at the Sentinels themselves: `sentinel_username`, `sentinel_password`.

    Raises:
        BadStoreUrlError: It cannot be parsed.
    """
    parsed = parse_hosts(url, _SENTINEL, 26379)
    service, _, db = parsed.path.partition("/")
    if not service or not (db or "0").isdecimal():
        raise BadStoreUrlError(
            f"The path of the Sentinel URL is {parsed.path!r}; expected the name of the service, and a number if a "
            "database follows.",
            fix=f"Use {_SENTINEL}.",
        )
    options = {"ssl": True, **parsed.options} if parsed.tls else dict(parsed.options)
    sentinel_account = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    timeout_s = min(_SENTINEL_TIMEOUT_S, timeout / (len(parsed.nodes) + 1))
    no_retry = Retry(NoBackoff(), 0)  # the other Sentinels are queried before a dead one is retried
    sentinel_options = {
        "socket_connect_timeout": timeout_s,
        "socket_timeout": timeout_s,
        "retry": no_retry,
        **sentinel_account,
        **options,
    }
    account = {"username": parsed.user, "password": parsed.password}
    try:
        sentinel: Any = Sentinel(list(parsed.nodes), sentinel_kwargs=sentinel_options)
        client = sentinel.master_for(service, db=int(db or 0), **account, **options, **_common(timeout))
        pool: ConnectionPool = client.connection_pool
        pool.make_connection()  # type: ignore[no-untyped-call]  # as above
    except TypeError as exc:
        raise BadStoreUrlError(f"The store's URL cannot be parsed: {exc}.", fix=f"Use {_SENTINEL}.") from exc
    return pool


@dataclass(frozen=True, slots=True)
class MultiHostUrl:
    """A parsed URL with several hosts.

    Attributes:
        tls: Whether connections are encrypted.
        nodes: The hosts and their ports.
        user: The account's name, or None.
        password: Its password, or None.
        path: The path, without slashes around it.
        options: The options behind `?`, as redis-py has them.
    """

    tls: bool
    nodes: list[Address]
    user: str | None
    password: str | None
    path: str
    options: dict[str, Any]


def parse_hosts(url: str, example: str, port: int) -> MultiHostUrl:
    """Parse a URL with several hosts.

    Args:
        url: The URL.
        example: One that is valid, for messages.
        port: The port of a host without one.

    Raises:
        BadStoreUrlError: It cannot be parsed.
    """
    tls = url.startswith("rediss")
    try:
        parts = urlsplit(url)
        account, _, hosts = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        nodes = [_address(host, port) for host in hosts.split(",") if host]
        options = parse_url(f"{'rediss' if tls else 'redis'}://host?{parts.query}")
    except ValueError as exc:
        raise BadStoreUrlError(f"The store's URL cannot be parsed: {exc}.", fix=f"Use {example}.") from exc
    if not nodes:
        raise BadStoreUrlError("The store's URL has no host.", fix=f"Use {example}.")
    given = dict(parse_qsl(parts.query))
    return MultiHostUrl(
        tls,
        nodes,
        unquote(user) or None,
        unquote(password) or None,
        parts.path.strip("/"),
        {name: value for name, value in options.items() if name in given},
    )


def _address(text: str, port: int) -> Address:
    """Parse `host`, `host:port` or `[IPv6]:port`.

    Raises:
        ValueError: The port is not a number.
    """
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest.removeprefix(":") or port)
    host, _, rest = text.partition(":")
    return host, int(rest or port)


def _common(timeout: float) -> dict[str, Any]:
    return {
        "socket_connect_timeout": timeout,
        "socket_timeout": None,  # a call sets the limit for the whole exchange
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
