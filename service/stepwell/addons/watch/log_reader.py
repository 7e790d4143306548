"""`LogReader`: reads the event log of a stream, and separates the live events before the read from those after it.

The store publishes a mark in the script call that reads the log. On each path by which the stream's events arrive,
those of commits before the read arrive before the mark.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stepwell.addons.watch.commit_events import CommitEvent, decode_events
from stepwell.store import keys
from stepwell.store.scripts import Script
from stepwell.store.transport.retry import deadline
from stepwell.types import StreamKey

if TYPE_CHECKING:
    from stepwell.store.state_store import StateStore

MARK_BYTES: Final = 16
"""Length of a mark; every event is longer."""

_HISTORY: Final = Script.of("history.lua", "stepwell.addons.watch")
_TIMEOUT_S: Final = 5.0


class LogReader:
    """Reads event logs."""

    def __init__(self, store: StateStore, topic: str) -> None:
        """Create it."""
        self._store = store
        self._topic = topic
        self._marks: dict[bytes, _Mark] = {}

    async def read(
        self, key: StreamKey, on_read: Callable[[], None], *, channel: str = ""
    ) -> tuple[int, list[CommitEvent]]:
        """Return a stream's step (0 if missing) and its event log, the oldest event first.

        Args:
            key: The stream's key.
            on_read: Called once all live events of commits before the read have arrived, and none after it.
            channel: The shard channel of the stream, if it is subscribed to.

        Raises:
            TimeoutError: The store or a mark did not arrive in time.
            ServiceError: The store did not reply.
            ValueError: The log has something that is not an event.
        """
        value = secrets.token_bytes(MARK_BYTES)
        mark = self._marks[value] = _Mark({self._topic, channel} - {""}, on_read)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                record = keys.record_key(*key)
                names = (record, keys.event_log_key(record), self._topic, value, channel)
                step, log = await self._store.execute(deadline(_TIMEOUT_S), "EVAL", _HISTORY.text, 2, *names)
                await mark.has_arrived.wait()
        finally:
            del self._marks[value]
        return int.from_bytes(step, "little"), [event for message in log for event in decode_events(message)]

    def on_mark(self, path: str, message: bytes) -> bool:
        """Handle a message on a topic or channel; returns False if it is not a mark of this reader."""
        if len(message) != MARK_BYTES or (mark := self._marks.get(message)) is None:
            return False
        mark.arrive(path)
        return True

    def end_path(self, path: str) -> None:
        """Note that the marks published so far do not arrive on a topic or channel any more."""
        for mark in self._marks.values():
            mark.arrive(path)


class _Mark:
    """A published mark, and the paths on which it has not arrived yet."""

    __slots__ = ("_on_read", "_paths", "has_arrived")

    def __init__(self, paths: set[str], on_read: Callable[[], None]) -> None:
        self.has_arrived = asyncio.Event()
        self._paths = paths
        self._on_read = on_read

    def arrive(self, path: str) -> None:
        """Note that it has arrived on a path, or never will."""
        self._paths.discard(path)
        if not self._paths and not self.has_arrived.is_set():
            self._on_read()
            self.has_arrived.set()
