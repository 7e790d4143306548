"""`Lease`: the right of one process of all on a store to do a piece of work, for as long as it renews it.

A lease is never deleted or shortened by another process than its holder, and work does not outlive it: it is renewed
beside the work, and the work is cancelled as soon as the lease may have expired.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from service.background import cancel
from service.errors import ServiceError
from service.store.scripts import Script

if TYPE_CHECKING:
    from service.store.state_store import StateStore

T = TypeVar("T")

LEASE: Final = Script.of("lease.lua")
_RENEWALS: Final = 3  # in the time for which a lease is held
_RETRY_S: Final = 0.1


class StoredLease(NamedTuple):
    """A lease, as the store has it.

    Attributes:
        holder: Who has it; empty: nobody.
        time_ms: The store's clock, milliseconds since 1970.
    """

    holder: str
    time_ms: int


async def acquire_lease(store: StateStore, key: str, holder: str, lease_ms: int, *, deadline: float) -> StoredLease:
    """Acquire or renew a lease, if nobody else has it.

    Args:
        store: The store.
        key: The lease.
        holder: Who acquires it; a name that no other process has.
        lease_ms: For how long; 0: release it.
        deadline: On the running loop's clock.

    Raises:
        ServiceError: The store does not reply in time.
    """
    reply = await store.execute(deadline, "EVAL", LEASE.text, 1, key, holder, lease_ms)
    found, seconds, microseconds = reply
    return StoredLease(found.decode(), int(seconds) * 1000 + int(microseconds) // 1000)


class Lease:
    """The lease of one piece of work."""

    def __init__(
        self,
        store: StateStore,
        key: str,
        holder: str,
        *,
        lease_s: float,
        rest_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it; nothing is acquired.

        Args:
            store: The store.
            key: The key of the lease.
            holder: A name that no other process has.
            lease_s: Seconds after the last renewal after which another process may acquire it.
            rest_s: Seconds for which it is kept after the work has succeeded.
            clock: Seconds; monotonic.
        """
        self._store = store
        self._key = key
        self._holder = holder
        self._lease_s = lease_s
        self._rest_s = rest_s
        self._clock = clock
        self._held_until = -math.inf

    @property
    def is_held(self) -> bool:
        """Whether no other process can have it. Check it before a write that another process must not see undone."""
        return self._clock() < self._held_until

    async def run(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do the work if no other process does it, renew the lease meanwhile, and release it.

        Args:
            work: Called once the lease is acquired; cancelled when the lease is lost.

        Returns:
            What it returns; None: another process has the lease, or has acquired it before the work was done.

        Raises:
            ServiceError: The store does not reply.
        """
        if not await self._acquire(self._lease_s):
            return None
        working, keeping = asyncio.ensure_future(work()), asyncio.create_task(self._keep())
        rest_s = 0.0
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return None
            result = working.result()
            rest_s = self._rest_s
            return result
        finally:
            await cancel([working, keeping])
            await self._end(rest_s)

    async def _keep(self) -> None:
        """Renew the lease until it is lost."""
        pause_s = self._lease_s / _RENEWALS
        while self.is_held:
            await asyncio.sleep(min(pause_s, self._held_until - self._clock()))
            try:
                if not await self._acquire(self._lease_s):
                    return
            except ServiceError:
                await asyncio.sleep(_RETRY_S)

    async def _acquire(self, lease_s: float) -> bool:
        """Acquire or renew it; while it is held, no longer than that is waited for the store."""
        sent_at = self._clock()
        left = self._held_until - sent_at if self.is_held else lease_s
        deadline = asyncio.get_running_loop().time() + left
        lease_ms = max(int(lease_s * 1000), 1)
        lease = await acquire_lease(self._store, self._key, self._holder, lease_ms, deadline=deadline)
        self._held_until = sent_at + lease_s if lease.holder == self._holder else -math.inf
        return self.is_held

    async def _end(self, rest_s: float) -> None:
        """Release the lease, or keep it for a while; if the store does not reply, it expires."""
        deadline, lease_ms = asyncio.get_running_loop().time() + self._lease_s, int(rest_s * 1000)
        self._held_until = -math.inf
        try:
            await acquire_lease(self._store, self._key, self._holder, lease_ms, deadline=deadline)
        except ServiceError:
            return
