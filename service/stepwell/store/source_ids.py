"""`SourceIds`: the ids of sources in the store, by the digests that records have of them.

A record has 8 bytes of a source's id, so that it stays small. The id is written before the first record that has its
digest, and expires after the last one: it lives for four times the longest life of a record, and is renewed when such a
record's expiry is renewed. After the store has lost all data, it may take a minute until an id is written again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from stepwell.errors import ServiceError
from stepwell.store import keys
from stepwell.store.transport.retry import deadline, replies_of
from stepwell.types import source_digest

if TYPE_CHECKING:
    from stepwell.store.state_store import StateStore

_KeyT = TypeVar("_KeyT", str, bytes)
_AGAIN_S: Final = 60.0
_MAX_REMEMBERED: Final = 65_536


class SourceIds:
    """Writes, renews and reads the ids of sources."""

    def __init__(self, store: StateStore, *, longest_ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create it on top of a state store.

        Args:
            store: The store of the records.
            longest_ttl_s: The longest time that a record or a snapshot may live after it was last written.
            clock: Seconds; monotonic.
        """
        self._store = store
        self._ttl_ms = int(4 * 1000 * longest_ttl_s)
        self._clock = clock
        self._written_at: dict[str, float] = {}
        self._renewed_at: dict[bytes, float] = {}
        self._renewals: set[asyncio.Task[None]] = set()

    def unwritten(self, ids: Iterable[str]) -> list[str]:
        """Return the ids that have to be written before a record has their digests."""
        latest, written_at = self._clock() - _AGAIN_S, self._written_at.get
        return [one for one in {*ids} if one and written_at(one, -math.inf) <= latest]

    async def write(self, ids: Collection[str], *, deadline: float) -> None:
        """Write ids.

        Args:
            ids: What `unwritten` has returned.
            deadline: On the running loop's clock.

        Raises:
            ServiceError: The store did not reply, or is full.
        """
        now = self._clock()
        commands = [("SET", keys.source_key(source_digest(one)), one, "PX", self._ttl_ms) for one in ids]
        await replies_of(self._store.transport, commands, deadline=deadline)
        _remember(self._written_at, ids, now)

    def renew_soon(self, digests: Iterable[bytes]) -> None:
        """Extend in the background the lives of ids, because records with their digests live on."""
        now, renewed_at = self._clock(), self._renewed_at.get
        due = [one for one in {*digests} if renewed_at(one, -math.inf) <= now - _AGAIN_S]
        if not due:
            return
        _remember(self._renewed_at, due, now)
        task = asyncio.create_task(self._renew(due))
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    async def _renew(self, digests: Collection[bytes]) -> None:
        commands = [("PEXPIRE", keys.source_key(digest), self._ttl_ms) for digest in digests]
        try:
            await replies_of(self._store.transport, commands, deadline=deadline())
        except ServiceError:
            for digest in digests:  # it is due again with the next record
                self._renewed_at.pop(digest, None)

    async def read(self, digests: Iterable[bytes], *, deadline: float) -> Mapping[bytes, str]:
        """Return ids by digest; one that is not stored is left out.

        Args:
            digests: Digests of ids, 8 bytes each.
            deadline: On the running loop's clock.

        Raises:
            ServiceError: The store did not reply.
        """
        wanted = [*{*digests}]
        commands = [("GET", keys.source_key(digest)) for digest in wanted]
        values = await replies_of(self._store.transport, commands, deadline=deadline) if wanted else []
        return {
            digest: value.decode() for digest, value in zip(wanted, values, strict=True) if isinstance(value, bytes)
        }


def _remember(times: dict[_KeyT, float], names: Iterable[_KeyT], now: float) -> None:
    if len(times) > _MAX_REMEMBERED:
        times.clear()
    times.update(dict.fromkeys(names, now))
