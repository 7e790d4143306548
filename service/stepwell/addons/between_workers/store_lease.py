"""`StoreLease`: the entry of a lease in the store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepwell.addons.between_workers.lease import LEASE_SCRIPT
from stepwell.errors import ServiceError
from stepwell.store.transport.retry import deadline

if TYPE_CHECKING:
    from stepwell.store.state_store import StateStore


class StoreLease:
    """The entry of a lease in the store, and the clock of the store, which every renewal reads."""

    errors: tuple[type[Exception], ...] = (ServiceError,)

    def __init__(self, store: StateStore, key: str) -> None:
        """Create it; nothing is read."""
        self._store = store
        self._key = key
        self._offset_ms = 0.0

    def now_ms(self) -> int:
        """Return the store's clock, milliseconds since 1970, as of the last renewal."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    async def put(self, holder: str, lease_ms: int, *, only_renew: bool, timeout_s: float) -> str:
        """Implement `LeaseEntry`."""
        sent_at = time.monotonic()
        found, seconds, microseconds = await self._store.execute(
            deadline(timeout_s), "EVAL", LEASE_SCRIPT, 1, self._key, holder, lease_ms, int(only_renew)
        )
        # The store read its clock between the request and the response, which may have waited here for seconds: what
        # is known about it already is kept as far as it agrees with that
        time_ms = int(seconds) * 1000 + int(microseconds) // 1000
        least, most = (time_ms - at * 1000 for at in (time.monotonic(), sent_at))
        self._offset_ms = min(max(self._offset_ms, least), most)
        name: str = found.decode()
        return name
