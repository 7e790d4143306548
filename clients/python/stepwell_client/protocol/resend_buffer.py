"""`ResendBuffer`: confirmed requests that the store may still lose, kept to be resent."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stepwell_client.protocol.requests import SentRequest, StreamCursor

KEEP_BYTES: Final = 16 * 2**20
"""Default size of a client's buffer in bytes."""


class ResendBuffer:
    """The most recent requests of all streams, within a memory limit; threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        """Create an empty buffer.

        Args:
            max_bytes: Memory limit of all requests together; the oldest are evicted.
        """
        self._max_bytes = max_bytes
        self._bytes = 0
        self._order: deque[SentRequest] = deque()
        self._lock = threading.Lock()

    def keep(self, sent: SentRequest) -> None:
        """Add a confirmed request."""
        with self._lock:
            sent.cursor.past.append(sent)
            self._order.append(sent)
            self._bytes += sent.nbytes
            while self._bytes > self._max_bytes:
                oldest = self._order.popleft()
                self._bytes -= oldest.nbytes
                if oldest.cursor.past and oldest.cursor.past[0] is oldest:
                    oldest.cursor.past.popleft()

    def discard(self, cursor: StreamCursor) -> None:
        """Discard a stream's requests, because its next position does not follow on them."""
        with self._lock:
            cursor.past.clear()

    def since(self, cursor: StreamCursor, step: int, state_id: str) -> Sequence[SentRequest]:
        """Return a stream's buffered requests from a position on; empty if the position is not in the buffer."""
        with self._lock:
            past = list(cursor.past)
        first = next((i for i, sent in enumerate(past) if (sent.step, sent.before) == (step, state_id)), len(past))
        return past[first:]
