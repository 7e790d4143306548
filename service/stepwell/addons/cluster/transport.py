"""`ClusterTransport`: sends each command to the primary of a Redis Cluster that owns its key.

A stream's keys share a hash tag, so they are in one slot and a commit stays one atomic script. The owners of the slots
are read with `CLUSTER SLOTS` from any node, and again whenever a reply shows that they have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.crc import key_slot

from stepwell.addons.cluster.shard_subscriptions import ShardSubscriptions
from stepwell.addons.cluster.url import ClusterUrl
from stepwell.store.transport.connection import Argument, CommandError, NoReplyError, NotSentError
from stepwell.store.transport.server import ServerTransport
from stepwell.store.transport.shard_channels import ShardChannels, ShardListener
from stepwell.store.transport.urls import Address

_log = logging.getLogger(__name__)
_SLOTS: Final = 16384
_REDIRECTS: Final = 5
_REFRESH_TIMEOUT_S: Final = 1.0  # for one node's reply to `CLUSTER SLOTS`
_MIN_REFRESH_INTERVAL_S: Final = 1.0  # the owners of the slots count as fresh for so long
_KEYLESS: Final = frozenset(("PING", "PUBLISH"))

Target = tuple[ServerTransport, bool]
"""A node, and whether `ASKING` has to be sent before the command."""


def open_transport(url: str, *, timeout: float) -> ClusterTransport:
    """Return the transport for `redis+cluster://host:port,host:port`, with `rediss+cluster` over TLS.

    Raises:
        BadStoreUrlError: The URL cannot be parsed.
    """
    return ClusterTransport(ClusterUrl.read(url), timeout=timeout)


class ClusterTransport:
    """Connections to every primary of a Cluster."""

    is_cluster = True

    def __init__(self, url: ClusterUrl, *, timeout: float) -> None:
        """Create it unconnected.

        Args:
            url: Some of the nodes, and the account and options for all of them.
            timeout: Seconds for connecting, and for one exchange.
        """
        self.timeout = timeout
        self._url = url
        self._closed = False
        self._transports: dict[Address, ServerTransport] = {}
        self._slot_owners: list[ServerTransport] = []  # index: the slot
        self._primaries: list[Address] = []
        self._name = ""
        self._refreshed_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._last_error = "no node replied in time"
        self._n_dedicated = 0

    async def call(
        self, *commands: Sequence[Argument], timeout: float | None = None, confirm: bool = False
    ) -> list[Any]:
        """Send each command to the node that owns its key, concurrently, and follow redirects; see `RedisTransport`."""
        limit = self.timeout if timeout is None else timeout
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit
        if not self._slot_owners:
            await self._refresh_now(limit)
        replies: list[Any] = [None] * len(commands)
        targets: dict[Target, list[int]] = {}
        for i, command in enumerate(commands):
            targets.setdefault((self._owner(command), False), []).append(i)
        for _ in range(_REDIRECTS):
            left = max(deadline - loop.time(), 0.001)
            groups = list(targets.items())
            exchanges = [
                self._replies_of(target, [commands[i] for i in indices], left, confirm=confirm)
                for target, indices in groups
            ]
            results = [await exchanges[0]] if len(exchanges) == 1 else await asyncio.gather(*exchanges)
            targets = {}
            for ((transport, _), indices), group_replies in zip(groups, results, strict=True):
                for i, reply in zip(indices, group_replies, strict=True):
                    replies[i] = reply
                    if isinstance(reply, CommandError) and reply.code in ("MOVED", "ASK"):
                        targets.setdefault(self._redirected(reply, transport), []).append(i)
            if not targets:
                break
        return replies

    async def open_dedicated(self) -> asyncio.StreamWriter:
        """Return a connection to one node, in turn: PUBLISH reaches subscribers on every node."""
        if not self._slot_owners:
            await self._refresh_now(self.timeout)
        self._n_dedicated += 1
        return await self._transport_to(self._primaries[self._n_dedicated % len(self._primaries)]).open_dedicated()

    def shard_channels(self, listener: ShardListener) -> ShardChannels:
        """Return subscriptions to channels on the nodes that own their slots."""
        return ShardSubscriptions(self, listener)

    async def owner(self, key: str) -> ServerTransport:
        """Return the primary that owns a key, as far as known.

        Raises:
            NotSentError: No node returned the owners of the slots.
        """
        if not self._slot_owners:
            await self._refresh_now(self.timeout)
        return self._slot_owners[key_slot(key.encode())]

    def note_moved(self, error: CommandError, source: ServerTransport) -> None:
        """Record the new owner of a slot from a `MOVED` that `source` returned."""
        self._redirected(error, source)

    def refresh(self) -> None:
        """Read the owners of the slots again, in the background."""
        self._schedule_refresh()

    async def primaries(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerTransport]]:
        """Return the primaries, sorted by address, and a name of the slots' assignment; see `RedisTransport`."""
        is_old = asyncio.get_running_loop().time() - self._refreshed_at > _MIN_REFRESH_INTERVAL_S
        if not self._slot_owners or (fresh and is_old):
            await self._refresh_now(self.timeout)
        elif is_old:
            self._schedule_refresh()
        return self._name, [self._transport_to(node) for node in self._primaries]

    async def close(self) -> None:
        """Close every connection; no new one is opened afterwards."""
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        await asyncio.gather(*(transport.close() for transport in self._transports.values()))

    # ---------------------------------------------------------------- one node

    async def _replies_of(
        self, target: Target, commands: Sequence[Sequence[Argument]], limit: float, *, confirm: bool
    ) -> Any:
        """Return a node's replies; if the exchange fails, the error once per command."""
        transport, asking = target
        if asking:
            commands = [part for command in commands for part in (("ASKING",), command)]
        try:
            replies = await transport.call(*commands, timeout=limit, confirm=confirm)
        except (NotSentError, NoReplyError) as exc:
            self._schedule_refresh()  # its slots may have another owner now
            error: Exception = exc
            if isinstance(exc, NotSentError) and transport.closed and not self._closed:
                error = NotSentError("its node has left the Cluster")  # a retry goes to the new owner of its slots
            replies = [error] * len(commands)
        return replies[1::2] if asking else replies

    def _transport_to(self, node: Address) -> ServerTransport:
        transport = self._transports.get(node)
        if transport is None:
            transport = self._transports[node] = ServerTransport(
                self._url.pool(node, self.timeout), timeout=self.timeout
            )
        return transport

    # ---------------------------------------------------------------- owners of the slots

    def _owner(self, command: Sequence[Argument]) -> ServerTransport:
        if command[0] in _KEYLESS:
            return self._any_node()
        key = str(command[3] if command[0] in ("EVALSHA", "EVAL") else command[1])
        return self._slot_owners[key_slot(key.encode())]

    def _any_node(self) -> ServerTransport:
        transports = [self._transport_to(node) for node in self._primaries]
        return next((transport for transport in transports if not transport.circuit_open), transports[0])

    def _redirected(self, error: CommandError, source: ServerTransport) -> Target:
        """Return a redirect's target: `MOVED slot host:port` is permanent, `ASK slot host:port` for one command."""
        code, slot, address = str(error).split(" ")[:3]
        host, _, port = address.rpartition(":")
        here = next((node for node, transport in self._transports.items() if transport is source), None)
        transport = self._transport_to((host or (here[0] if here else ""), int(port)))
        if code == "MOVED":
            self._slot_owners[int(slot)] = transport
            self._schedule_refresh()
        return transport, code == "ASK"

    def _schedule_refresh(self) -> None:
        if self._closed:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh_slots())

    async def _refresh_now(self, limit: float) -> None:
        """Read the owners of the slots, once for all concurrent callers; if no node replies, the last ones stay in use.

        Raises:
            NotSentError: No node replies, and none ever did.
        """
        self._schedule_refresh()
        if self._refreshing is not None:
            await asyncio.wait([self._refreshing], timeout=limit)
        if not self._slot_owners:
            reason = "no node of the Cluster returned the owners of the slots"
            raise NotSentError(f"{reason}: {self._last_error}", is_permanent=self._closed, public_reason=reason)

    async def _refresh_slots(self) -> None:
        for node in self._candidates():
            try:
                [slots] = await self._transport_to(node).call(
                    ("CLUSTER", "SLOTS"), timeout=min(_REFRESH_TIMEOUT_S, self.timeout)
                )
            except (NotSentError, NoReplyError) as exc:
                self._last_error = str(exc)
                continue
            if isinstance(slots, CommandError):
                self._last_error = str(slots)
            elif slots:
                await self._apply_slots(slots, node)
                return
            else:
                self._last_error = "no slots are assigned"

    def _candidates(self) -> Iterable[Address]:
        primaries = sorted(self._primaries, key=lambda node: self._transport_to(node).circuit_open)
        return dict.fromkeys((*primaries, *self._url.nodes))

    async def _apply_slots(self, slots: Sequence[Any], source: Address) -> None:
        """Apply a reply to `CLUSTER SLOTS`: per range its first and last slot, its primary, and its replicas."""
        ranges = sorted((int(first), int(last), _address(primary, source)) for first, last, primary, *_ in slots)
        nodes = sorted({node for _, _, node in ranges})
        fallback = self._transport_to(nodes[0])  # for a slot without an owner; the node returns the error
        owners = [fallback] * _SLOTS
        for first, last, node in ranges:
            owners[first : last + 1] = [self._transport_to(node)] * (last + 1 - first)
        name = hashlib.blake2b(repr(ranges).encode(), digest_size=4).hexdigest()
        if self._name and name != self._name:
            _log.info(
                "The Cluster's slots have other owners now; its primaries are %s",
                ", ".join(f"{h}:{p}" for h, p in nodes),
            )
        self._slot_owners, self._primaries, self._name = owners, nodes, name
        self._refreshed_at = asyncio.get_running_loop().time()
        removed = set(self._transports) - {*nodes, *self._url.nodes}
        await asyncio.gather(*(self._transports.pop(node).close() for node in removed))


def _address(node: Sequence[Any], source: Address) -> Address:
    """Decode a node of `CLUSTER SLOTS`; one without a host has the host of the node that replied."""
    host = node[0].decode() if isinstance(node[0], bytes) else ""
    return (host if host not in ("", "?") else source[0]), int(node[1])
