"""Store URLs: what they may say, and redis-py's connection pools for the servers that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from model_export.errors import StepwellError

Address = tuple[str, int]
"""Host and port."""

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_SENTINEL = "redis+sentinel://host:26379,host:26379/mymaster/0"
_SENTINEL_TIMEOUT_S = 0.5  # a dead Sentinel must leave time to ask the others


class BadStoreUrlError(StepwellError):
    """The store's URL cannot be used."""

    code = "bad_store_url"


def scheme_of(url: str) -> str:
    """Return a URL's scheme.

    Raises:
        BadStoreUrlError: It is none of `SCHEMES`.
    """
    scheme = url.split("://", 1)[0]
    if scheme not in SCHEMES:
        raise BadStoreUrlError(
            f"The store's URL begins with {scheme!r}; expected one of {', '.join(SCHEMES)}.",
            fix="Give for example redis://localhost:6379/0.",
        )
    return scheme


def server_pool(url: str, timeout: float) -> ConnectionPool:
    """Return the pool of one server: `redis://`, `rediss://` or `unix://`.

    Raises:
        BadStoreUrlError: It cannot be read.
    """
    try:
        pool = ConnectionPool.from_url(url, **_common(timeout))
        # This connects nothing, but takes no option that it does not know.
        pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no types here
    except (ValueError, TypeError) as exc:
        raise BadStoreUrlError(f"The store's URL cannot be read: {exc}.", fix="Give redis://host:port/0.") from exc
    return pool


def sentinel_pool(url: str, timeout: float) -> ConnectionPool:
    """Return the pool of the primary that Sentinels name: `redis+sentinel://user:password@host:port,host/service/db`.

    With `rediss+sentinel` Sentinels and servers are spoken to over TLS. Options stand behind `?`, as in `rediss://`,
    and there the account at the Sentinels themselves: `sentinel_username`, `sentinel_password`.

    Raises:
        BadStoreUrlError: It cannot be read.
    """
    many = _read(url, _SENTINEL, 26379)
    service, _, db = many.path.partition("/")
    if not service or not (db or "0").isdecimal():
        raise BadStoreUrlError(
            "A Sentinel URL needs hosts, the name of the service, and a number where a database follows.",
            fix=f"Give {_SENTINEL}.",
        )
    options = {"ssl": True, **many.options} if many.tls else dict(many.options)
    asked_as = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    patience = min(_SENTINEL_TIMEOUT_S, timeout / (len(many.nodes) + 1))
    once = Retry(NoBackoff(), 0)  # a dead Sentinel is not tried again and again before the others
    ask = {"socket_connect_timeout": patience, "socket_timeout": patience, "retry": once, **asked_as, **options}
    account = {"username": many.user, "password": many.password}
    try:
        sentinel: Any = Sentinel(list(many.nodes), sentinel_kwargs=ask)  # type: ignore[no-untyped-call]  # has no types
        client = sentinel.master_for(service, db=int(db or 0), **account, **options, **_common(timeout))
        pool: ConnectionPool = client.connection_pool
        pool.make_connection()  # type: ignore[no-untyped-call]  # as above
    except TypeError as exc:
        raise BadStoreUrlError(f"The store's URL cannot be read: {exc}.", fix=f"Give {_SENTINEL}.") from exc
    return pool


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """What `redis+cluster://user:password@host:port,host:port` names; over TLS with `rediss+cluster`.

    Attributes:
        nodes: Some nodes; they know the others.
    """

    nodes: Sequence[Address]
    _scheme: str
    _account: str
    _query: str

    @classmethod
    def read(cls, url: str) -> ClusterUrl:
        """Read a URL.

        Raises:
            BadStoreUrlError: It cannot be read.
        """
        many = _read(url, "redis+cluster://host:6379,host:6379", 6379)
        if many.path not in ("", "0"):
            raise BadStoreUrlError(
                f"A Cluster has the database 0 alone; the URL asks for {many.path!r}.", fix="Leave it out."
            )
        parts = urlsplit(url)
        read = cls(many.nodes, "rediss" if many.tls else "redis", parts.netloc.rpartition("@")[0], parts.query)
        read.pool(many.nodes[0], 1.0)  # an option that nobody knows is told now
        return read

    def pool(self, node: Address, timeout: float) -> ConnectionPool:
        """Return the pool of one node."""
        host, port = node
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        account = f"{self._account}@" if self._account else ""
        return server_pool(f"{self._scheme}://{account}{where}/0?{self._query}", timeout)


@dataclass(frozen=True, slots=True)
class _MultiHostUrl:
    """A URL that names several hosts."""

    tls: bool
    nodes: list[Address]
    user: str | None
    password: str | None
    path: str
    options: dict[str, Any]


def _read(url: str, example: str, port: int) -> _MultiHostUrl:
    tls = url.startswith("rediss")
    try:
        parts = urlsplit(url)
        account, _, hosts = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        nodes = [_address(host, port) for host in hosts.split(",") if host]
        options = parse_url(f"{'rediss' if tls else 'redis'}://host?{parts.query}")
    except ValueError as exc:
        raise BadStoreUrlError(f"The store's URL cannot be read: {exc}.", fix=f"Give {example}.") from exc
    if not nodes:
        raise BadStoreUrlError("The store's URL names no host.", fix=f"Give {example}.")
    known = dict(parse_qsl(parts.query))
    return _MultiHostUrl(
        tls,
        nodes,
        unquote(user) or None,
        unquote(password) or None,
        parts.path.strip("/"),
        {name: value for name, value in options.items() if name in known},
    )


def _address(text: str, port: int) -> Address:
    """Read `host`, `host:port` or `[IPv6]:port`.

    Raises:
        ValueError: The port is no number.
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
