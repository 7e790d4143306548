"""`Lease`: the right of one process of several to do a piece of work, for as long as it renews it.

A lease is never deleted or shortened by another process than its holder, and work does not outlive it: it is renewed
beside the work, and the work is cancelled as soon as the lease may have expired.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from stepwell.background import cancel

T = TypeVar("T")

LEASE_SCRIPT: Final = """\
-- Acquires, renews or releases a lease.
--
-- KEYS[1]     lease
-- ARGV[1..3]  who acquires it, milliseconds for which it is held (0 = release it), whether it is only renewed (1)
--
-- Returns the holder ('' = nobody), and the store's time: seconds, microseconds.
local holder = redis.call('GET', KEYS[1]) or ''
if holder == ARGV[1] or (holder == '' and ARGV[3] ~= '1') then
  if ARGV[2] == '0' then
    redis.call('DEL', KEYS[1])
    holder = ''
  else
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    holder = ARGV[1]
  end
end
local time = redis.call('TIME')
return {holder, time[1], time[2]}
"""
"""Of a lease in Redis."""

_RENEWALS: Final = 3  # in the time for which a lease is held
_RETRY_S: Final = 0.1
_SLOW_FOR: Final = 40  # renewals after which a slow one is not counted any more


class LeaseEntry(Protocol):
    """Where a lease is kept: an entry that has one holder, and that vanishes unless it is renewed.

    Attributes:
        errors: What `put` raises if the store does not reply.
    """

    errors: tuple[type[Exception], ...]

    async def put(self, holder: str, lease_ms: int, *, only_renew: bool, timeout_s: float) -> str:
        """Let a process hold the lease, if nobody else does, and return who holds it now; empty: nobody.

        Args:
            holder: The process; a name that no other one has.
            lease_ms: For how long; 0: release it.
            only_renew: Do nothing if the process does not hold it already.
            timeout_s: The longest wait for the store.
        """


class Lease:
    """The lease of one piece of work.

    Attributes:
        holder: Who has it, as last read.
    """

    def __init__(
        self,
        entry: LeaseEntry,
        name: str,
        *,
        lease_s: float,
        longest_s: float | None = None,
        is_checked: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it; nothing is acquired.

        Args:
            entry: Where it is kept.
            name: Of this process; no other one has it.
            lease_s: Seconds after the last renewal after which another process may acquire it.
            longest_s: Where renewals come late, as on a machine that is too busy, the lease gets longer, up to so many
                seconds: otherwise two processes would keep taking it from each other before either has done anything.
            is_checked: Every write of the work checks who has the lease. The work goes on until another process has it.
            clock: Seconds; monotonic.
        """
        self.holder = ""
        self.name = name
        self._entry = entry
        self._lease_s = lease_s
        self._longest_s = longest_s or lease_s
        self._is_checked = is_checked
        self._clock = clock
        self._held_until = -math.inf
        self._keeping: asyncio.Task[None] | None = None
        self._renewed_at: float | None = None
        self._pauses: deque[float] = deque(maxlen=_SLOW_FOR)  # seconds between renewals

    @property
    def is_held(self) -> bool:
        """Whether no other process can have it. Check it before a write that another process must not see undone."""
        return self._clock() < self._held_until

    async def acquire(self, *, only_renew: bool = False) -> bool:
        """Acquire or renew the lease, if nobody else has it; returns whether this process has it.

        Args:
            only_renew: Do nothing if it has expired: another process may have had it since.

        Raises:
            An error of the entry: The store does not reply.
        """
        sent_at = self._clock()
        if self._renewed_at is not None:
            self._pauses.append(sent_at - self._renewed_at)
        lease_s = min(max(_RENEWALS * max(self._pauses, default=0.0), self._lease_s), self._longest_s)
        timeout_s = self._held_until - sent_at if self.is_held and not self._is_checked else lease_s
        lease_ms = max(int(lease_s * 1000), 1)
        self.holder = await self._entry.put(self.name, lease_ms, only_renew=only_renew, timeout_s=timeout_s)
        has_it = self.holder == self.name
        self._renewed_at = self._clock() if has_it else None
        self._held_until = sent_at + lease_s if has_it else -math.inf
        return self.is_held

    async def renew(self) -> bool:
        """Renew the lease if this process has it; returns whether it still has it. Raises as `acquire` does."""
        return self.is_held and await self.acquire(only_renew=True)

    def hold(self) -> asyncio.Task[None]:
        """Renew the lease until it is lost or given back; returns the task, which ends when it is lost."""
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep(), name="lease")
        return self._keeping

    async def release(self, rest_s: float = 0.0) -> None:
        """Give the lease back, or keep it for a while; if the store does not reply, it expires."""
        if self._keeping is not None:
            await cancel([self._keeping])
        self._held_until, self._renewed_at = -math.inf, None
        try:
            self.holder = await self._entry.put(self.name, int(rest_s * 1000), only_renew=True, timeout_s=self._lease_s)
        except self._entry.errors:
            return

    async def run(self, work: Callable[[], Awaitable[T]], *, rest_s: float = 0.0) -> T | None:
        """Do the work if no other process does it, renew the lease meanwhile, and release it.

        Args:
            work: Called once the lease is acquired; cancelled when the lease is lost.
            rest_s: Seconds for which it is kept after the work has succeeded.

        Returns:
            What it returns; None: another process has the lease, or has acquired it before the work was done.

        Raises:
            An error of the entry: The store does not reply.
        """
        if not await self.acquire():
            return None
        working, keeping = asyncio.ensure_future(work()), self.hold()
        rest = 0.0
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return None
            result = working.result()
            rest = rest_s
            return result
        finally:
            await cancel([working])
            await self.release(rest)

    async def _keep(self) -> None:
        while self.is_held or self._is_checked:
            left = self._held_until - self._clock()
            await asyncio.sleep(min(self._lease_s / _RENEWALS, left if left > 0 else math.inf))
            try:
                await self.acquire(only_renew=not self._is_checked)
            except self._entry.errors:
                await asyncio.sleep(_RETRY_S)
                continue
            if self.holder != self.name:
                return
