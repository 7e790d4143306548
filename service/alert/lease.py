"""`GroupLease`: the right of one process of a group to evaluate the rules, for about a second.

On a machine that is too busy to renew it in time the lease gets longer, up to ten seconds. Otherwise two processes
would keep taking it from each other before either has done anything.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

from service.alert.errors import LeaseLostError
from service.errors import ServiceError
from service.store.alerts import AlertStore, AlertWrites

_RENEW_S: Final = 0.25
_SHORTEST_MS: Final = 1000
_LONGEST_MS: Final = 10_000
_RENEWALS: Final = 3  # a lease lasts for so many renewals at the pace of the slowest recent one
_SLOW_FOR: Final = 40  # renewals after which a slow one is not counted any more


class GroupLease:
    """The lease of a group, and the clock of the store, which every renewal reads.

    Attributes:
        holder: Who has the lease, as last read.
    """

    def __init__(self, store: AlertStore, name: str) -> None:
        """Create it; `acquire` reads the store.

        Args:
            store: The store of the group.
            name: The random name of this process.
        """
        self.holder = ""
        self._store = store
        self._name = name
        self._held_until = float("-inf")  # on the monotonic clock
        self._offset_ms = 0.0
        self._pauses: deque[float] = deque(maxlen=_SLOW_FOR)  # seconds between renewals
        self._renewed_at: float | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process certainly has the lease."""
        return time.monotonic() < self._held_until

    def now_ms(self) -> int:
        """Return the store's clock, milliseconds since 1970, as of the last renewal."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    async def acquire(self) -> bool:
        """Acquire or renew the lease; returns whether this process has it.

        Raises:
            ServiceError: The store does not reply.
        """
        sent_at = time.monotonic()
        if self._renewed_at is not None:
            self._pauses.append(sent_at - self._renewed_at)
        slowest_ms = 1000 * max(self._pauses, default=0)
        lease_ms = int(min(max(_RENEWALS * slowest_ms, _SHORTEST_MS), _LONGEST_MS))
        lease = await self._store.acquire(self._name, lease_ms)
        self.holder = lease.holder
        # The store read its clock between the request and the response, which may have waited here for seconds: what
        # is known about it already is kept as far as it agrees with that
        least, most = (lease.time_ms - at * 1000 for at in (time.monotonic(), sent_at))
        self._offset_ms = min(max(self._offset_ms, least), most)
        has_it = lease.holder == self._name
        self._renewed_at = time.monotonic() if has_it else None
        self._held_until = sent_at + lease_ms / 1000 if has_it else float("-inf")
        return self.is_held

    async def keep(self) -> None:
        """Renew the lease until another process has it.

        Raises:
            LeaseLostError: Another process has it.
        """
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                held = await self.acquire()
            except ServiceError:
                continue  # nothing can be written meanwhile; if another process gets the lease, that is found then
            if not held and self.holder != self._name:
                raise _lost()

    async def commit(self, call_id: str, writes: AlertWrites, targets: list[str]) -> None:
        """Write the result of an evaluation; the same call may be repeated.

        Raises:
            ServiceError: The store does not reply.
            LeaseLostError: This process has the lease no more; nothing was written.
        """
        if not await self._store.commit(self._name, call_id, writes, targets):
            raise _lost()

    async def release(self) -> None:
        """Give the lease back; if the store does not reply, it expires."""
        self._held_until, self._renewed_at = float("-inf"), None
        try:
            await self._store.release(self._name)
        except ServiceError:
            return


def _lost() -> LeaseLostError:
    return LeaseLostError("another process has the lease now; this one stands by")
