"""`ClusterTransport`: the way to the primaries of a Redis Cluster, each command to the one that has its key.

A stream's keys share a hash tag, so they are in one slot and a commit stays one atomic script. Who has which slot is
learnt with `CLUSTER SLOTS` from any node, and again whenever an answer shows that it has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.crc import key_slot

from service.store.transport.connection import Argument, CommandError, NoReplyError, NotSentError
from service.store.transport.server import ServerTransport
from service.store.transport.urls import Address, ClusterUrl

_log = logging.getLogger(__name__)
_SLOTS: Final = 16384
_REDIRECTS: Final = 5
_REFRESH_TIMEOUT_S: Final = 1.0  # that one node may take to say who has what
_MIN_REFRESH_INTERVAL_S: Final = 1.0  # as long as that is believed without a hint that it changed
_KEYLESS: Final = frozenset(("PING", "PUBLISH"))

Target = tuple[ServerTransport, bool]
"""A node, and whether it is to be told that it was asked for (`ASKING`)."""


class ClusterTransport:
    """Connections to every primary of a Cluster."""

    is_cluster = True

    def __init__(self, url: ClusterUrl, *, timeout: float) -> None:
        """Prepare; nobody is asked yet.

        Args:
            url: Some nodes, and how to reach any.
            timeout: Seconds that connecting, and one exchange, may take.
        """
        self.timeout = timeout
        self._url = url
        self._closed = False
        self._transports: dict[Address, ServerTransport] = {}
        self._slot_owners: list[ServerTransport] = []  # by slot
        self._primaries: list[Address] = []
        self._name = ""
        self._refreshed_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._last_error = "no node answered in time"
        self._refresh_lock = 0

    async def call(
        self, *commands: Sequence[Argument], timeout: float | None = None, confirm: bool = False
    ) -> list[Any]:
        """Send each command to the node that has its key, all at once, and follow redirections; see `RedisTransport`."""
        limit = self.timeout if timeout is None else timeout
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit
        if not self._slot_owners:
            await self._refresh_now(limit)
        replies: list[Any] = [None] * len(commands)
        places: dict[Target, list[int]] = {}
        for at, command in enumerate(commands):
            places.setdefault((self._owner(command), False), []).append(at)
        for _ in range(_REDIRECTS):
            left = max(deadline - loop.time(), 0.001)
            groups = list(places.items())
            exchanges = [
                self._transport_for(place, [commands[at] for at in ats], left, confirm=confirm) for place, ats in groups
            ]
            found = [await exchanges[0]] if len(exchanges) == 1 else await asyncio.gather(*exchanges)
            places = {}
            for ((wire, _), ats), answers in zip(groups, found, strict=True):
                for at, reply in zip(ats, answers, strict=True):
                    replies[at] = reply
                    if isinstance(reply, CommandError) and reply.code in ("MOVED", "ASK"):
                        places.setdefault(self._redirected(reply, wire), []).append(at)
            if not places:
                break
        return replies

    async def open_dedicated(self) -> asyncio.StreamWriter:
        """Return a connection to one node, another one each time: messages are published through all of them."""
        if not self._slot_owners:
            await self._refresh_now(self.timeout)
        self._refresh_lock += 1
        return await self._transport_to(self._primaries[self._refresh_lock % len(self._primaries)]).open_dedicated()

    async def primaries(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerTransport]]:
        """Return the primaries in the order of their addresses, and a name for who has what; see `RedisTransport`."""
        is_old = asyncio.get_running_loop().time() - self._refreshed_at > _MIN_REFRESH_INTERVAL_S
        if not self._slot_owners or (fresh and is_old):
            await self._refresh_now(self.timeout)
        elif is_old:
            self._schedule_refresh()
        return self._name, [self._transport_to(node) for node in self._primaries]

    async def close(self) -> None:
        """Close every connection; none is opened any more."""
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        await asyncio.gather(*(wire.close() for wire in self._transports.values()))

    # ---------------------------------------------------------------- one node

    async def _transport_for(
        self, place: Target, commands: Sequence[Sequence[Argument]], limit: float, *, confirm: bool
    ) -> Any:
        """Return a node's replies; where it fails, the error for each command."""
        wire, asking = place
        if asking:
            commands = [part for command in commands for part in (("ASKING",), command)]
        try:
            found = await wire.call(*commands, timeout=limit, confirm=confirm)
        except (NotSentError, NoReplyError) as exc:
            self._schedule_refresh()  # another node may have taken its place
            trouble: Exception = exc
            if isinstance(exc, NotSentError) and wire.closed and not self._closed:
                trouble = NotSentError("its node has left the Cluster")  # the next try finds who has its slots now
            found = [trouble] * len(commands)
        return found[1::2] if asking else found

    def _transport_to(self, node: Address) -> ServerTransport:
        wire = self._transports.get(node)
        if wire is None:
            wire = self._transports[node] = ServerTransport(self._url.pool(node, self.timeout), timeout=self.timeout)
        return wire

    # ---------------------------------------------------------------- who has what

    def _owner(self, command: Sequence[Argument]) -> ServerTransport:
        if command[0] in _KEYLESS:
            return self._any_node()
        key = str(command[3] if command[0] in ("EVALSHA", "EVAL") else command[1])
        return self._slot_owners[key_slot(key.encode())]

    def _any_node(self) -> ServerTransport:
        wires = [self._transport_to(node) for node in self._primaries]
        return next((wire for wire in wires if not wire.circuit_open), wires[0])

    def _redirected(self, refusal: CommandError, asked: ServerTransport) -> Target:
        """Return where a command is to go: `MOVED slot host:port` for good, `ASK slot host:port` this once."""
        code, slot, where = str(refusal).split(" ")[:3]
        host, _, port = where.rpartition(":")
        here = next((node for node, wire in self._transports.items() if wire is asked), None)
        wire = self._transport_to((host or (here[0] if here else ""), int(port)))
        if code == "MOVED":
            self._slot_owners[int(slot)] = wire
            self._schedule_refresh()
        return wire, code == "ASK"

    def _schedule_refresh(self) -> None:
        if self._closed:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh_slots())

    async def _refresh_now(self, limit: float) -> None:
        """Learn who has what, all that ask for it together; what was known before stays good where nobody says.

        Raises:
            NotSentError: Nobody says, and nobody ever did.
        """
        self._schedule_refresh()
        if self._refreshing is not None:
            await asyncio.wait([self._refreshing], timeout=limit)
        if not self._slot_owners:
            why = "no node of the Cluster says who has which slot"
            raise NotSentError(f"{why}: {self._last_error}", is_permanent=self._closed, public_reason=why)

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
                self._last_error = "none are assigned"

    def _candidates(self) -> Iterable[Address]:
        known = sorted(self._primaries, key=lambda node: self._transport_to(node).circuit_open)
        return dict.fromkeys((*known, *self._url.nodes))

    async def _apply_slots(self, slots: Sequence[Any], asked: Address) -> None:
        """Take an answer to `CLUSTER SLOTS`: first and last slot, primary, replicas."""
        ranges = sorted((int(first), int(last), _address(primary, asked)) for first, last, primary, *_ in slots)
        nodes = sorted({node for _, _, node in ranges})
        anyone = self._transport_to(nodes[0])  # of a slot that nobody has: it will say so
        owners = [anyone] * _SLOTS
        for first, last, node in ranges:
            owners[first : last + 1] = [self._transport_to(node)] * (last + 1 - first)
        name = hashlib.blake2b(repr(ranges).encode(), digest_size=4).hexdigest()
        if self._name and name != self._name:
            _log.info("The Cluster's slots have moved; its primaries are %s", ", ".join(f"{h}:{p}" for h, p in nodes))
        self._slot_owners, self._primaries, self._name = owners, nodes, name
        self._refreshed_at = asyncio.get_running_loop().time()
        gone = set(self._transports) - {*nodes, *self._url.nodes}
        await asyncio.gather(*(self._transports.pop(node).close() for node in gone))


def _address(node: Sequence[Any], asked: Address) -> Address:
    """Read a node of `CLUSTER SLOTS`; one without a name has the host that was asked."""
    host = node[0].decode() if isinstance(node[0], bytes) else ""
    return (host if host not in ("", "?") else asked[0]), int(node[1])
