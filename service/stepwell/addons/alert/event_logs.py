"""`EventLogs`: reads the event logs of many streams at once, and when each stream was stepped last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from stepwell.store import keys
from stepwell.store.listing import page
from stepwell.store.state_store import StateStore
from stepwell.store.transport.retry import deadline, replies_of

_AT_ONCE: Final = 500
_PAGE: Final = 1000
_TTL_FACTOR: Final = 1.25  # as in `StateStore`, which sets the expiry of an event log at each commit


class StreamTail(NamedTuple):
    """The end of a stream's event log.

    Attributes:
        newest: The newest event, encoded; None: there is no event log.
        age_ms: Milliseconds since the commit of that event, by the store's clock; None: there is no event log.
        expires_in_ms: Milliseconds until the stream expires; None: it does not exist.
    """

    newest: bytes | None
    age_ms: int | None
    expires_in_ms: int | None


class EventLogs:
    """The event logs of one tenant's streams of a model."""

    def __init__(self, store: StateStore, tenant: str, model: str) -> None:
        """Create it.

        Args:
            store: The store of the service. Its `stream_ttl_s` must be that of the service: every commit sets the
                expiry of the event log from it, so what is left until then gives the time of the commit by the clock
                of the store.
            tenant: The owner of the streams.
            model: The model's name.
        """
        self._store = store
        self._tenant = tenant
        self._model = model
        self._ttl_ms = int(_TTL_FACTOR * 1000 * store.stream_ttl_s)

    async def streams(self, prefix: str) -> list[str]:
        """Return the ids of all streams that begin with a prefix.

        Raises:
            ServiceError: An error of the store.
        """
        found: dict[str, None] = {}
        cursor: str | None = None
        while True:
            names, cursor = await page(
                self._store.transport, self._tenant, self._model, prefix, cursor, limit=_PAGE, deadline=deadline()
            )
            found |= dict.fromkeys(names)
            if cursor is None:
                return list(found)

    async def tails(self, streams: Sequence[str]) -> list[StreamTail]:
        """Return the end of the event log of each stream; raises as `streams` does."""
        tails: list[StreamTail] = []
        for start in range(0, len(streams), _AT_ONCE):
            commands: list[Sequence[Any]] = []
            for stream in streams[start : start + _AT_ONCE]:
                record = keys.record_key(self._tenant, self._model, stream)
                log = keys.event_log_key(record)
                # In this order: after a commit in between, the age is that of an event that is newer than `newest`
                commands += [("LINDEX", log, -1), ("PTTL", log), ("PTTL", record)]
            replies = await self._replies(commands)
            tails += [
                StreamTail(newest, None if log < 0 else max(self._ttl_ms - log, 0), None if record == -2 else record)
                for newest, log, record in zip(replies[::3], replies[1::3], replies[2::3], strict=True)
            ]
        return tails

    async def read(self, streams: Sequence[str]) -> list[list[bytes]]:
        """Return the events of each stream's event log, the oldest first; raises as `streams` does."""
        logs: list[list[bytes]] = []
        for start in range(0, len(streams), _AT_ONCE):
            records = [keys.record_key(self._tenant, self._model, one) for one in streams[start : start + _AT_ONCE]]
            logs += await self._replies([("LRANGE", keys.event_log_key(record), 0, -1) for record in records])
        return logs

    async def _replies(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        return await replies_of(self._store.transport, commands, deadline=deadline())
