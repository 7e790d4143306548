"""`StreamCounter`: how many streams each version of each model has, counted by one worker of all replicas at a time."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from typing import Final

import msgspec
from msgspec import Struct

from stepwell.addons.between_workers.lease import Lease
from stepwell.addons.between_workers.store_lease import StoreLease
from stepwell.addons.releases import keys
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.store import ReleaseStore
from stepwell.errors import ServiceError, StoreUnavailableError
from stepwell.store.keys import ALL_RECORDS
from stepwell.store.scripts import Script
from stepwell.store.transport.connection import NotSentError
from stepwell.store.transport.retry import deadline, execute_with_retry
from stepwell.store.transport.server import ServerTransport

SCRIPT: Final = Script.of("count_streams.lua", "stepwell.addons.releases")
"""Counts the streams on one page of a SCAN."""

_PAGE_KEYS: Final = 1000
_SHARE: Final = 0.01  # of the store's time that counting may use
_URGENT_PASS_S: Final = 25.0  # duration of a pass while a model has a release: counts are right within a minute
_FIRST_PAGE_S: Final = 0.025  # the same for a page of a million streams, as long as nothing has counted them
_MAX_PAUSE_S: Final = 5.0
_LEASE_S: Final = 15.0
_BETWEEN_PASSES_S: Final = 1.0


class StreamCounts(Struct, frozen=True):
    """The numbers of streams, of all tenants.

    Attributes:
        counted_at: When the count ended; seconds since 1970, by the store's clock.
        by_model: By model and by fingerprint in hex; a pair counts for the version that responded last.
        pages: Pages of the SCAN.
    """

    counted_at: float
    by_model: dict[str, dict[str, int]]
    pages: int = 1

    def of(self, model: str) -> dict[str, int]:
        """Return the numbers of a model's streams by fingerprint in hex."""
        return self.by_model.get(model, {})


class StreamCounter:
    """Counts streams in turn with the other workers, and reads what they have counted.

    The count is a slow SCAN: it uses at most a hundredth of the store's time, or more if a model has a release and the
    numbers would be older than a minute. One worker has the lease to count; it
    keeps it for a second after a pass.

    Attributes:
        counts: The newest count that this worker has read; None: there is none.
    """

    def __init__(self, store: ReleaseStore, releases: Releases) -> None:
        """Create it.

        Args:
            store: The store.
            releases: The documents of this worker.
        """
        self._releases = releases
        self._store = store
        self._transport = store.state_store.transport
        entry = StoreLease(store.state_store, keys.COUNT_LEASE)
        self._lease = Lease(entry, secrets.token_hex(8), lease_s=_LEASE_S)
        self.counts: StreamCounts | None = None

    async def refresh(self) -> None:
        """Count, if no other worker does, and read the newest count.

        Raises:
            ServiceError: An error of the store.
        """
        await self._lease.run(self._count_and_write, rest_s=_BETWEEN_PASSES_S)
        self.counts = await self.read()

    async def _count_and_write(self) -> None:
        counts = await self._count()
        if self._lease.is_held:
            await self._store.state_store.execute(deadline(), "SET", keys.STREAM_COUNTS, msgspec.json.encode(counts))

    async def read(self) -> StreamCounts | None:
        """Return the newest count; None: there is none.

        Raises:
            ServiceError: An error of the store.
        """
        stored = await self._store.state_store.execute(deadline(), "GET", keys.STREAM_COUNTS)
        try:
            return None if stored is None else msgspec.json.decode(stored, type=StreamCounts)
        except msgspec.MsgspecError:
            return None  # of another version of the service

    async def _count(self) -> StreamCounts:
        before = self.counts or await self.read()
        page_s = _FIRST_PAGE_S if before is None else _URGENT_PASS_S / before.pages
        by_model: defaultdict[str, dict[str, int]] = defaultdict(dict)
        pages, loop = 0, asyncio.get_running_loop()
        try:
            _, primaries = await self._transport.primaries()
        except NotSentError as exc:
            raise StoreUnavailableError(f"The store did not reply: {exc.public_reason}.") from exc
        for primary in primaries:
            cursor = b"0"
            while True:
                started_at = loop.time()
                cursor, found = await _page(primary, cursor)
                pages += 1
                for model, fingerprint, n in found:
                    of_model = by_model[model]
                    of_model[fingerprint] = of_model.get(fingerprint, 0) + n
                if cursor == b"0":
                    break
                seconds = loop.time() - started_at
                pause = min(_MAX_PAUSE_S, seconds * (1 / _SHARE - 1))
                if self._releases.models():
                    pause = min(pause, max(page_s / 2, page_s - seconds))
                await asyncio.sleep(pause)
        return StreamCounts(await self._store.time(), dict(by_model), pages)


async def _page(primary: ServerTransport, cursor: bytes) -> tuple[bytes, list[tuple[str, str, int]]]:
    """Return the cursor of the next page, and model, fingerprint in hex and number of streams on this one."""
    call = ("EVALSHA", SCRIPT.sha, 0, cursor, ALL_RECORDS, _PAGE_KEYS)
    [reply] = await execute_with_retry(primary, [call], deadline=deadline(), script=SCRIPT.text)
    if isinstance(reply, ServiceError):
        raise reply
    next_cursor, *flat = reply
    found = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return next_cursor, [(model.decode(), fingerprint.hex(), n) for model, fingerprint, n in found]
