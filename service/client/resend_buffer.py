"""`ResendBuffer`: what was sent and may still be lost by the store, to be sent again where that happens."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from service.client.protocol import ClientRequest, StreamCursor

KEEP_BYTES: Final = 16 * 2**20
"""What a client keeps if nothing else is said."""

_OVERHEAD: Final = 400  # bytes of a kept request beside its inputs


@dataclass(slots=True, eq=False)
class SentRequest:
    """A request that moved a stream.

    Attributes:
        ask: As it was sent.
        place: The stream.
        step: The stream's step before it.
        before: The stream's state id before it; None: the stream began with it.
        state_id: The stream's state id after it.
        nbytes: What keeping it takes.
    """

    request: ClientRequest
    cursor: StreamCursor
    step: int
    before: str | None
    state_id: str
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = _OVERHEAD + _size(self.request.document)


class ResendBuffer:
    """The newest requests of all streams, as many as fit; threads may share it."""

    def __init__(self, most_bytes: int) -> None:
        """Begin empty.

        Args:
            most_bytes: What all requests together may take; the oldest are forgotten.
        """
        self._most = most_bytes
        self._bytes = 0
        self._order: deque[SentRequest] = deque()
        self._lock = threading.Lock()

    def keep(self, sent: SentRequest) -> None:
        """Keep a request that was answered."""
        with self._lock:
            sent.cursor.past.append(sent)
            self._order.append(sent)
            self._bytes += sent.nbytes
            while self._bytes > self._most:
                oldest = self._order.popleft()
                self._bytes -= oldest.nbytes
                if oldest.cursor.past and oldest.cursor.past[0] is oldest:
                    oldest.cursor.past.popleft()

    def forget(self, place: StreamCursor) -> None:
        """Forget what a stream was sent: what comes now does not follow on it."""
        with self._lock:
            place.past.clear()

    def since(self, place: StreamCursor, step: int, state_id: str) -> Sequence[SentRequest]:
        """Return what a stream was sent since it stood somewhere; nothing where it never did, as far as is known."""
        with self._lock:
            past = list(place.past)
        at = next((at for at, sent in enumerate(past) if (sent.step, sent.before) == (step, state_id)), len(past))
        return past[at:]


def _size(document: Any) -> int:
    if isinstance(document, bytes):
        return len(document)
    return sum(_size(part) for part in document.values()) if isinstance(document, dict) else 0
