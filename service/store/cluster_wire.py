"""`ClusterWire`: the way to the primaries of a Redis Cluster, each command to the one that has its key.

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

from service.store.link import Argument, NoReplyError, NotSentError, RefusalError
from service.store.server_wire import ServerWire
from service.store.urls import Address, ClusterUrl

_log = logging.getLogger(__name__)
_SLOTS: Final = 16384
_REDIRECTS: Final = 5
_LEARN_S: Final = 1.0  # that one node may take to say who has what
_FRESH_S: Final = 1.0  # as long as that is believed without a hint that it changed
_KEYLESS: Final = frozenset(("PING", "PUBLISH"))

Place = tuple[ServerWire, bool]
"""A node, and whether it is to be told that it was asked for (`ASKING`)."""


class ClusterWire:
    """Connections to every primary of a Cluster."""

    one_stream = True

    def __init__(self, url: ClusterUrl, *, timeout: float) -> None:
        """Prepare; nobody is asked yet.

        Args:
            url: Some nodes, and how to reach any.
            timeout: Seconds that connecting, and one exchange, may take.
        """
        self.timeout = timeout
        self._url = url
        self._closed = False
        self._wires: dict[Address, ServerWire] = {}
        self._owners: list[ServerWire] = []  # by slot
        self._primaries: list[Address] = []
        self._name = ""
        self._learnt_at = float("-inf")
        self._learning: asyncio.Task[None] | None = None
        self._trouble = "no node answered in time"
        self._turn = 0

    async def call(
        self, *commands: Sequence[Argument], timeout: float | None = None, confirm: bool = False
    ) -> list[Any]:
        """Send each command to the node that has its key, all at once, and follow redirections; see `Wire`."""
        limit = self.timeout if timeout is None else timeout
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit
        if not self._owners:
            await self._learn_now(limit)
        replies: list[Any] = [None] * len(commands)
        places: dict[Place, list[int]] = {}
        for at, command in enumerate(commands):
            places.setdefault((self._owner(command), False), []).append(at)
        for _ in range(_REDIRECTS):
            left = max(deadline - loop.time(), 0.001)
            groups = list(places.items())
            exchanges = [self._at(place, [commands[at] for at in ats], left, confirm=confirm) for place, ats in groups]
            found = [await exchanges[0]] if len(exchanges) == 1 else await asyncio.gather(*exchanges)
            places = {}
            for ((wire, _), ats), answers in zip(groups, found, strict=True):
                for at, reply in zip(ats, answers, strict=True):
                    replies[at] = reply
                    if isinstance(reply, RefusalError) and reply.code in ("MOVED", "ASK"):
                        places.setdefault(self._redirected(reply, wire), []).append(at)
            if not places:
                break
        return replies

    async def open(self) -> asyncio.StreamWriter:
        """Return a connection to one node, another one each time: messages are published through all of them."""
        if not self._owners:
            await self._learn_now(self.timeout)
        self._turn += 1
        return await self._wire(self._primaries[self._turn % len(self._primaries)]).open()

    async def parts(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerWire]]:
        """Return the primaries in the order of their addresses, and a name for who has what; see `Wire`."""
        is_old = asyncio.get_running_loop().time() - self._learnt_at > _FRESH_S
        if not self._owners or (fresh and is_old):
            await self._learn_now(self.timeout)
        elif is_old:
            self._learn_soon()
        return self._name, [self._wire(node) for node in self._primaries]

    async def close(self) -> None:
        """Close every connection; none is opened any more."""
        self._closed = True
        if self._learning is not None:
            self._learning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._learning
        await asyncio.gather(*(wire.close() for wire in self._wires.values()))

    # ---------------------------------------------------------------- one node

    async def _at(self, place: Place, commands: Sequence[Sequence[Argument]], limit: float, *, confirm: bool) -> Any:
        """Return a node's replies; where it fails, the error for each command."""
        wire, asking = place
        if asking:
            commands = [part for command in commands for part in (("ASKING",), command)]
        try:
            found = await wire.call(*commands, timeout=limit, confirm=confirm)
        except (NotSentError, NoReplyError) as exc:
            self._learn_soon()  # another node may have taken its place
            trouble: Exception = exc
            if isinstance(exc, NotSentError) and wire.closed and not self._closed:
                trouble = NotSentError("its node has left the Cluster")  # the next try finds who has its slots now
            found = [trouble] * len(commands)
        return found[1::2] if asking else found

    def _wire(self, node: Address) -> ServerWire:
        wire = self._wires.get(node)
        if wire is None:
            wire = self._wires[node] = ServerWire(self._url.pool(node, self.timeout), timeout=self.timeout)
        return wire

    # ---------------------------------------------------------------- who has what

    def _owner(self, command: Sequence[Argument]) -> ServerWire:
        if command[0] in _KEYLESS:
            return self._anyone()
        key = str(command[3] if command[0] in ("EVALSHA", "EVAL") else command[1])
        return self._owners[key_slot(key.encode())]

    def _anyone(self) -> ServerWire:
        wires = [self._wire(node) for node in self._primaries]
        return next((wire for wire in wires if not wire.away), wires[0])

    def _redirected(self, refusal: RefusalError, asked: ServerWire) -> Place:
        """Return where a command is to go: `MOVED slot host:port` for good, `ASK slot host:port` this once."""
        code, slot, where = str(refusal).split(" ")[:3]
        host, _, port = where.rpartition(":")
        here = next((node for node, wire in self._wires.items() if wire is asked), None)
        wire = self._wire((host or (here[0] if here else ""), int(port)))
        if code == "MOVED":
            self._owners[int(slot)] = wire
            self._learn_soon()
        return wire, code == "ASK"

    def _learn_soon(self) -> None:
        if self._closed:
            return
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._learn())

    async def _learn_now(self, limit: float) -> None:
        """Learn who has what, all that ask for it together; what was known before stays good where nobody says.

        Raises:
            NotSentError: Nobody says, and nobody ever did.
        """
        self._learn_soon()
        if self._learning is not None:
            await asyncio.wait([self._learning], timeout=limit)
        if not self._owners:
            why = "no node of the Cluster says who has which slot"
            raise NotSentError(f"{why}: {self._trouble}", hopeless=self._closed, told=why)

    async def _learn(self) -> None:
        for node in self._candidates():
            try:
                [slots] = await self._wire(node).call(("CLUSTER", "SLOTS"), timeout=min(_LEARN_S, self.timeout))
            except (NotSentError, NoReplyError) as exc:
                self._trouble = str(exc)
                continue
            if isinstance(slots, RefusalError):
                self._trouble = str(slots)
            elif slots:
                await self._take(slots, node)
                return
            else:
                self._trouble = "none are assigned"

    def _candidates(self) -> Iterable[Address]:
        known = sorted(self._primaries, key=lambda node: self._wire(node).away)
        return dict.fromkeys((*known, *self._url.nodes))

    async def _take(self, slots: Sequence[Any], asked: Address) -> None:
        """Take an answer to `CLUSTER SLOTS`: first and last slot, primary, replicas."""
        ranges = sorted((int(first), int(last), _address(primary, asked)) for first, last, primary, *_ in slots)
        nodes = sorted({node for _, _, node in ranges})
        anyone = self._wire(nodes[0])  # of a slot that nobody has: it will say so
        owners = [anyone] * _SLOTS
        for first, last, node in ranges:
            owners[first : last + 1] = [self._wire(node)] * (last + 1 - first)
        name = hashlib.blake2b(repr(ranges).encode(), digest_size=4).hexdigest()
        if self._name and name != self._name:
            _log.info("The Cluster's slots have moved; its primaries are %s", ", ".join(f"{h}:{p}" for h, p in nodes))
        self._owners, self._primaries, self._name = owners, nodes, name
        self._learnt_at = asyncio.get_running_loop().time()
        gone = set(self._wires) - {*nodes, *self._url.nodes}
        await asyncio.gather(*(self._wires.pop(node).close() for node in gone))


def _address(node: Sequence[Any], asked: Address) -> Address:
    """Read a node of `CLUSTER SLOTS`; one without a name has the host that was asked."""
    host = node[0].decode() if isinstance(node[0], bytes) else ""
    return (host if host not in ("", "?") else asked[0]), int(node[1])
