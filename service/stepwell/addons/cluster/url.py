"""`ClusterUrl`: the URL of a Redis Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool

from stepwell.store.transport.urls import Address, BadStoreUrlError, parse_hosts, server_pool


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """A parsed `redis+cluster://user:password@host:port,host:port`; with `rediss+cluster` over TLS.

    Attributes:
        nodes: Some of the nodes; each returns the others.
    """

    nodes: Sequence[Address]
    _scheme: str
    _account: str
    _query: str

    @classmethod
    def read(cls, url: str) -> ClusterUrl:
        """Parse a URL.

        Raises:
            BadStoreUrlError: It cannot be parsed.
        """
        parsed = parse_hosts(url, "redis+cluster://host:6379,host:6379", 6379)
        if parsed.path not in ("", "0"):
            raise BadStoreUrlError(
                f"The URL has the database {parsed.path!r}; a Cluster has database 0 only.", fix="Leave it out."
            )
        parts = urlsplit(url)
        cluster = cls(parsed.nodes, "rediss" if parsed.tls else "redis", parts.netloc.rpartition("@")[0], parts.query)
        cluster.pool(parsed.nodes[0], 1.0)  # raises on an unknown option
        return cluster

    def pool(self, node: Address, timeout: float) -> ConnectionPool:
        """Return the pool of one node."""
        host, port = node
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        account = f"{self._account}@" if self._account else ""
        return server_pool(f"{self._scheme}://{account}{address}/0?{self._query}", timeout)
